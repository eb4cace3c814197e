"""The jobs of `python -m training`, one module each, with add_arguments and run."""
