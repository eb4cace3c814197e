"""The gRPC skin: protobuf in, messages to the data plane, protobuf out."""
