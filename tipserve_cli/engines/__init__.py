"""Engines of the commands and bulk jobs: a model in this process, or a server."""
