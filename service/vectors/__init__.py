"""Embeddings of whole pictures and texts: as which numbers they are sent, and what they show."""
