"""Export: from a transformers model to the graphs and the package that the server loads."""
