"""Export: from a training checkpoint to the model package that the server loads."""
