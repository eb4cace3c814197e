"""Embeddings of whole images and texts: as which numbers they are sent, and what they show."""
