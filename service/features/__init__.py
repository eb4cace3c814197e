"""Patch embeddings made visible: colours by their principal components, and groups."""
