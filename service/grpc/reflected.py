"""The files that reflection tells of, in one pool: each dialect's own has but its own."""

from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from service.grpc.generated import encoder_service_pb2, open_inference_pb2

SERVICES = (encoder_service_pb2, open_inference_pb2, health_pb2, reflection_pb2)


def reflection_pool() -> DescriptorPool:
    """Every service of this server, with all that its messages are made of."""
    pool = DescriptorPool()
    names: set[str] = set()
    for module in SERVICES:
        _add(pool, module.DESCRIPTOR, names)
    return pool


def _add(pool: DescriptorPool, file: Any, names: set[str]) -> None:
    """A file after those that it imports; each once."""
    if file.name in names:
        return
    names.add(file.name)
    for imported in file.dependencies:
        _add(pool, imported, names)
    pool.AddSerializedFile(file.serialized_pb)
