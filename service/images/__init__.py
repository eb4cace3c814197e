"""Encoded pictures to what a model sees."""
