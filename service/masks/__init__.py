"""From what a model says of patches to masks, and masks to files."""
