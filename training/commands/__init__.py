"""The jobs of `python -m training`, one module each, with HELP, add_arguments and run."""
