"""The gRPC skin: protobuf in, messages to the data plane, protobuf out."""

import os

# Read when grpc is first imported, which is below here. Its core writes to standard error itself,
# in a form of its own that readers of a JSON log stumble over; what matters of it reaches us as an
# exception. Whoever sets the variable has it as they set it.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
