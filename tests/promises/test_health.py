"""Standard probes and reflection of gRPC."""

from queue import SimpleQueue
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.processes.server import LIMIT_S, Server


def test_health_and_reflection(student: Server) -> None:
    """A stream of reflection stays open meanwhile, as that of grpcurl does."""
    for path in ("/health", "/ping", "/v2/health/live", "/v2/health/ready"):
        assert httpx.get(student.rest + path, timeout=LIMIT_S).status_code == 200, path
    asked: SimpleQueue[Any] = SimpleQueue()
    asked.put(reflection_pb2.ServerReflectionRequest(list_services=""))
    with grpc.insecure_channel(student.grpc) as channel:
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub
        stream = reflection(channel).ServerReflectionInfo(iter(asked.get, None), timeout=LIMIT_S)
        listed = next(stream)
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", "tipserve.v1.EncoderService"):
            request = health_pb2.HealthCheckRequest(service=name)
            answer = health.Check(request, timeout=LIMIT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert stream.is_active(), "no check waits until a stream of reflection has ended"
        asked.put(None)
    services = {service.name for service in listed.list_services_response.service}
    assert {"tipserve.v1.EncoderService", "inference.GRPCInferenceService"} <= services
    assert student.metric("tipserve_requests_total") > 0
