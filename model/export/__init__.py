"""Export: write the graphs and the package of a transformers model."""
