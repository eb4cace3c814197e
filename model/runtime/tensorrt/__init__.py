"""TensorRT: build engines from a package's graphs, cache them, and run them on one GPU."""
