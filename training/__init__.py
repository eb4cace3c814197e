"""The training room: data, losses, methods, trainer, evaluation, export."""
