"""What is served: packages, their lanes and texts, and requests on their way through one."""
