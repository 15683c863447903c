"""What every process of this service shares: its environment, its GPUs, its end."""
