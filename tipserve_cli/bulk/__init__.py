"""Bulk jobs: embed many images into Parquet files, part by part, and resume after a stop."""
