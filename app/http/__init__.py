"""What speaks HTTP and belongs to no slice."""
