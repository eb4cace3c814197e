"""The command line `tipserve`."""
