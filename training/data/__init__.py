"""Scenes with captions and masks: art, backgrounds, composition, batches."""
