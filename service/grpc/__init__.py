"""The gRPC transport: converts protobuf to messages for the data plane, and answers back."""

import os

# Read when grpc is first imported, which happens after this line. gRPC's core writes to standard
# error in its own format, which breaks readers of a JSON log; its errors reach us as exceptions.
# A value from the environment stays.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
