"""Scores of a model on labelled images, whichever engine computes it."""
