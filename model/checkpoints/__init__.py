"""Checkpoints: what people have on disk, verified to the last tensor, as transformers' models."""
