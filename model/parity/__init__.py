"""Parity: whether what was exported computes what the model computes."""
