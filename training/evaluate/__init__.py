"""Scores of trained models, and the rows they are compared with."""
