"""Conversion: from what a user names to a model package, fetched, proven and kept."""
