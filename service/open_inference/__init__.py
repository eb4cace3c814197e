"""The Open Inference Protocol (KServe V2) as both transports speak it; no JSON, no protobuf."""
