"""What each client's connection may cost: limits beneath the application, where uvicorn has none of its own."""
