"""Frozen models of others that small students learn from, read from installed packages."""
