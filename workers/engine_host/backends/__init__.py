"""What compiles and runs: one adapter for each runtime."""
