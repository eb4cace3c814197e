"""Runtimes: the programs that execute a model package's graphs, NumPy in and NumPy out."""
