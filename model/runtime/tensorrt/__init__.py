"""TensorRT: engines built from a package's graphs, kept in a cache, and run on one GPU."""
