"""What makes a device or a compiler faster without changing what it computes."""
