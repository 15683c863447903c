"""What the processes of this service share: their environment, the GPUs they see, and how they end."""
