"""The REST skin: HTTP in, messages to the data plane, HTTP out."""
