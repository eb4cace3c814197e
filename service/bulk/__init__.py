"""Embedding many images into Parquet: parts, their rows, and jobs that can be stopped."""
