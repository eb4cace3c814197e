"""Parity: compare exported graphs with the model."""
