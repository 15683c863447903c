"""Builds of one definition under several options, measured in turns and ranked."""
