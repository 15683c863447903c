"""Programs that use the service as a client would."""
