"""Inputs of a run, behind one interface: composed scenes, or images from disk."""
