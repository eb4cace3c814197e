"""A call is begun and ended the same way for both transports."""

from collections.abc import Iterator
from contextvars import copy_context

import pytest

from service.call import Call, current_call
from service.monitoring.metrics import Metrics
from service.monitoring.telemetry import Telemetry
from service.tracing import NO_TRACE, Ending, NoTrace, NoTracer

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


class KeptTrace(NoTrace):
    """Remembers how its request ended."""

    __slots__ = ("endings",)
    endings: list[Ending]

    def end(self, ending: Ending) -> None:
        """Remember it."""
        self.endings.append(ending)


class OneTrace(NoTracer):
    """Gives the same trace to every request."""

    def __init__(self) -> None:
        self.trace = KeptTrace(TRACE_ID)
        object.__setattr__(self.trace, "endings", [])

    def begin(self, *_arguments: object) -> KeptTrace:
        """That trace."""
        return self.trace


@pytest.fixture
def calls_of_its_own() -> Iterator[None]:
    """The test's calls stay its own."""
    token = current_call.set(Call(request_id="outer", deadline=1.0))
    yield
    current_call.reset(token)


@pytest.mark.usefixtures("calls_of_its_own")
def test_a_call_has_its_id_its_deadline_and_its_trace(metrics: Metrics) -> None:
    carried = {"x-request-id": "me", "traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
    call = Telemetry(metrics).begin("grpc", "a.B/C", carried, 5.0)
    assert current_call.get() is call
    assert call.request_id == "me"
    assert call.deadline == pytest.approx(call.started + 5.0)
    assert call.trace.trace_id == TRACE_ID


def test_its_end_is_counted_and_told_to_its_trace(metrics: Metrics) -> None:
    tracer = OneTrace()
    telemetry = Telemetry(metrics, tracer=tracer)

    def answer() -> None:
        call = telemetry.begin("http", "POST", {}, 5.0)
        call.add("run", 0.25)
        call.error = "internal"
        telemetry.end(call, "POST /x", 500, is_fault=True)

    copy_context().run(answer)
    (ending,) = tracer.trace.endings
    assert ending[:4] == ("POST /x", 500, "internal", True)
    sample = metrics.registry.get_sample_value
    assert sample("tipserve_requests_total", {"method": "POST /x", "code": "500"}) == 1
    assert sample("tipserve_stage_duration_seconds_sum", {"stage": "run"}) == 0.25
    total_s = sample("tipserve_request_duration_seconds_sum", {"method": "POST /x"})
    assert total_s == pytest.approx(ending.seconds)


def test_what_is_quiet_is_counted_and_not_traced(metrics: Metrics) -> None:
    tracer = OneTrace()
    telemetry = Telemetry(metrics, tracer=tracer)

    def answer() -> None:
        call = telemetry.begin("http", "GET", {}, 5.0)
        telemetry.end(call, "GET /live", 200, is_quiet=True)

    copy_context().run(answer)
    assert not tracer.trace.endings
    labels = {"method": "GET /live", "code": "200"}
    assert metrics.registry.get_sample_value("tipserve_requests_total", labels) == 1


def test_a_tracer_that_fails_costs_the_trace_alone(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(NoTracer):
        def begin(self, *_arguments: object) -> NoTrace:
            raise RuntimeError("broken")

    telemetry = Telemetry(metrics, tracer=Broken())
    call = copy_context().run(telemetry.begin, "http", "GET", {}, 5.0)
    assert call.trace is NO_TRACE
    assert [record.getMessage() for record in caplog.records] == ["a trace was lost"]
