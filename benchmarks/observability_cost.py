"""What counting, logging and tracing add to a request.

Claims: metrics and the log line of a request cost less than half of what the usual libraries'
calls for the same cost, and a few hundredths of a request; so does tracing what is not sampled.
Run: python -m benchmarks.observability_cost
"""

import argparse
import asyncio
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Process, SimpleQueue
from typing import Any

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, Counter, Histogram

from benchmarks.noop_overhead import TARGETS, measure, running
from service.call import Call
from service.monitoring.log import AccessLog, LineWriter
from service.monitoring.metrics import SECONDS, Metrics
from service.monitoring.otel_tracing import OtelTracer
from service.monitoring.telemetry import Telemetry
from service.tracing import Ending, NoTracer, begin_batch

METHOD = "POST /v1/images:embed"
STAGES = {"admit": 1e-5, "decode": 3e-3, "queue": 1e-4, "run": 5e-3, "post": 2e-4}


def with_the_libraries() -> Callable[[], None]:
    """Labels looked up, and a record through `logging`, for every request."""
    registry = CollectorRegistry()
    requests = Counter("requests", "a", ["method", "code"], registry=registry)
    duration = Histogram("duration", "b", ["method"], buckets=SECONDS, registry=registry)
    stage = Histogram("stage", "c", ["stage"], buckets=SECONDS, registry=registry)
    logger = logging.Logger("benchmark", logging.INFO)
    handler = logging.StreamHandler(open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    handler.format = as_json  # type: ignore[method-assign]
    logger.addHandler(handler)

    def answer() -> None:
        requests.labels(METHOD, "200").inc()
        duration.labels(METHOD).observe(0.01)
        for name, seconds in STAGES.items():
            stage.labels(name).observe(seconds)
        fields = {"method": METHOD, "code": 200, "seconds": 0.01, **STAGES}
        logger.info("answered", extra={"fields": fields})

    return answer


def as_json(record: logging.LogRecord) -> str:
    """A record as a line of JSON."""
    when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    head = {"time": when, "level": record.levelname, "logger": record.name}
    fields: dict[str, Any] = record.__dict__["fields"]
    return json.dumps(head | {"message": record.getMessage(), "request_id": "r" * 32} | fields)


def with_ours(*, is_logged: bool, parent: str | None, is_traced: bool) -> Callable[[], None]:
    """The service's own way, from the request's arrival to its end."""
    lines = LineWriter(open(os.devnull, "w", encoding="utf-8"), max_lines=1_000_000)  # noqa: SIM115
    tracer = OtelTracer(Forgetful()) if is_traced else NoTracer()
    log = AccessLog(lines, "json") if is_logged else None
    telemetry = Telemetry(Metrics(), tracer=tracer, access_log=log)
    carried = {"x-request-id": "r" * 32} | ({"traceparent": parent} if parent else {})

    def answer() -> None:
        call = telemetry.begin("http", "POST", carried, 60.0)
        call.stages.update(STAGES)  # type: ignore[arg-type]
        tell(call)
        telemetry.end(call, METHOD, 200)

    return answer


def with_tracing_off() -> Callable[[], None]:
    """What the core's hooks for tracing cost where nothing is traced."""
    tracer = NoTracer()
    call = Call(request_id="r" * 32, deadline=60.0)
    ending = Ending(METHOD, 200, None, is_fault=False, seconds=0.01)

    def answer() -> None:
        call.trace = tracer.begin("http", "POST", {}, 0.0)
        tell(call)
        call.trace.end(ending)

    return answer


class Forgetful(InMemorySpanExporter):
    """Keeps nothing: what sending costs is the exporter's own thread's."""

    def export(self, spans: Any) -> Any:
        """Forget them."""
        result = super().export(spans)
        self.clear()
        return result


def tell(call: Call) -> None:
    """What the core tells of a request with one image in a batch of its own."""
    now = call.started
    for name in ("admit", "decode", "post"):
        call.trace.stage(name, now, now)
    call.trace.enter_queue(now)
    batch = begin_batch([call.trace], {"bucket": "image 112x112", "items": 1, "cost": 64}, now)
    batch.end(now)
    call.trace.ran_in(batch)


def cpu_us(answer: Callable[[], None], num_calls: int) -> float:
    """CPU time of one call, on all threads."""
    for _ in range(num_calls // 10):
        answer()
    started = time.process_time()
    for _ in range(num_calls):
        answer()
    time.sleep(0.2)  # the log's thread writes what waits
    return 1e6 * (time.process_time() - started) / num_calls


def compare_calls(rounds: int, num_calls: int) -> None:
    """Ours and the libraries' way in turn."""
    parent = f"00-{'a' * 32}-{'b' * 16}-"
    ways = {
        "the libraries' calls": with_the_libraries(),
        "ours, hooks of tracing, off": with_tracing_off(),
        "ours, metrics only": with_ours(is_logged=False, parent=None, is_traced=False),
        "ours, metrics and log": with_ours(is_logged=True, parent=None, is_traced=False),
        "  and tracing, not sampled": with_ours(
            is_logged=True, parent=f"{parent}00", is_traced=True
        ),
        "  and tracing, sampled": with_ours(is_logged=True, parent=f"{parent}01", is_traced=True),
    }
    results: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, answer in ways.items():
            results[name].append(cpu_us(answer, num_calls))
    base = statistics.median(results["the libraries' calls"])
    print("one request's telemetry alone, CPU us on all threads:")
    for name, found in results.items():
        middle = statistics.median(found)
        print(f"  {name:28} {middle:6.1f}  ({middle / base:.2f} of the libraries')")


async def compare_service(sides: dict[str, tuple[int, int]], rounds: int, seconds: float) -> None:
    """The whole service with more and more of it switched on."""
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            one = await measure(side, TARGETS["tipserve"], in_flight=32, seconds=seconds)
            cpu[name].append(one.cpu_us)
    print("the whole service around a no-op model and decoder, 60 kB body, 32 in flight:")
    base = cpu["log off, tracing off"]
    for name, found in cpu.items():
        ratios = sorted(a / b for a, b in zip(found, base, strict=True))
        print(
            f"  {name:32} {statistics.median(found):6.0f} CPU us/request  "
            f"{statistics.median(ratios):.3f} times ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


class Taker(BaseHTTPRequestHandler):
    """A collector that takes everything and keeps nothing."""

    def do_POST(self) -> None:
        """Take it."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def collect(port: "SimpleQueue[int]") -> None:
    """Run the collector on a free port, until the process is ended."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Taker) as server:
        port.put(server.server_port)
        server.serve_forever()


@contextmanager
def collector() -> Iterator[str]:
    """A collector in a process of its own."""
    port: SimpleQueue[int] = SimpleQueue()
    process = Process(target=collect, args=(port,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get()}"
    finally:
        process.terminate()
        process.join()


def main() -> None:
    """Both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each side in a round")
    options = parser.parse_args()
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # its queue is full, as it should be
    compare_calls(options.rounds, options.calls)
    with collector() as endpoint, ExitStack() as stack:
        otlp = f"otlp_endpoint={endpoint}"
        sides = {
            name: stack.enter_context(running("tipserve", *settings))
            for name, settings in {
                "log off, tracing off": ("access_log_ratio=0",),
                "log on, tracing off": (),
                "log on, 1 in 100 traced": (otlp, "trace_sample_ratio=0.01"),
                "log on, all traced": (otlp,),
            }.items()
        }
        asyncio.run(compare_service(sides, options.rounds, options.seconds))


if __name__ == "__main__":
    main()
