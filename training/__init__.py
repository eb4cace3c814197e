"""Training: data, losses, methods, trainer, evaluation, export."""
