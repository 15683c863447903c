"""One module for each checkpoint format; `app.weights.checkpoint.CheckpointFormat` says what is in one."""
