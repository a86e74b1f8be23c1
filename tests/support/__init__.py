"""Videos, weights, files, runs and servers that several tests use."""
