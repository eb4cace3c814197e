"""Encoded images to what a model sees."""
