"""Who computes for the commands and jobs: a model in this process, or a server."""
