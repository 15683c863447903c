"""What can be said of a build without the device, and without the library that compiles."""
