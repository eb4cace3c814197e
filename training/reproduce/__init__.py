"""The paper's effects in miniature: planned runs over several seeds, their measures and tables."""
