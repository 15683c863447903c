"""The worker process: one job from its claim to its end."""
