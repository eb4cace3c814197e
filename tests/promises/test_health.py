"""Standard probes and reflection of gRPC."""

from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.processes.server import LIMIT_S, Server


def test_health_and_reflection(student: Server) -> None:
    for path in ("/health", "/ping", "/v2/health/live", "/v2/health/ready"):
        assert httpx.get(student.rest + path, timeout=LIMIT_S).status_code == 200, path
    with grpc.insecure_channel(student.grpc) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", "tipserve.v1.EncoderService"):
            request = health_pb2.HealthCheckRequest(service=name)
            answer = health.Check(request, timeout=LIMIT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub
        (listed,) = reflection(channel).ServerReflectionInfo(asked, timeout=LIMIT_S)
    services = {service.name for service in listed.list_services_response.service}
    assert {"tipserve.v1.EncoderService", "inference.GRPCInferenceService"} <= services
    assert student.metric("tipserve_requests_total") > 0
