"""What the service costs over doing the same by hand; `make bench` runs all of it."""
