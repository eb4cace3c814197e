"""What is told of the service: metrics, traces and logs."""
