"""The Open Inference Protocol (KServe V2) over gRPC, with the extensions of Triton that we have."""
