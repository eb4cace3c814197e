"""The serving process: REST and gRPC over one request core."""
