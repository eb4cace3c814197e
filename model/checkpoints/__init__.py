"""Checkpoints: read models of several layouts, and verify every tensor."""
