"""Cost of metrics, logs and traces per request.

Claim: metrics and log line cost at most 1 % of a request with the bundled model, and so does
tracing an unsampled request.
Run: python -m benchmarks.observability_cost
"""

import argparse
import asyncio
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Process, SimpleQueue
from typing import Any

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks.noop_overhead import TARGETS, measure, running
from service.call import Call
from service.monitoring.log import AccessLog, LogQueue
from service.monitoring.metrics import Metrics
from service.monitoring.span_export import tracer_provider
from service.monitoring.telemetry import Telemetry
from service.tracing import NO_TRACER, Outcome, begin_batch, begin_request

METHOD = "POST /v1/images:embed"
STAGES = {"admit": 1e-5, "decode": 3e-3, "queue": 1e-4, "run": 5e-3, "post": 2e-4}


def whole_telemetry(*, is_logged: bool, parent: str | None, is_traced: bool) -> Callable[[], None]:
    """Record all telemetry of one request."""
    access_log = None
    if is_logged:
        log = LogQueue(open(os.devnull, "w", encoding="utf-8"), "json", max_lines=1_000_000)  # noqa: SIM115
        logging.getLogger().addHandler(log.handler)
        access_log = AccessLog()
    tracer = tracer_provider(Forgetful(), 1.0).get_tracer("x") if is_traced else NO_TRACER
    telemetry = Telemetry(Metrics(), tracer=tracer, access_log=access_log)
    carried = {"x-request-id": "r" * 32} | ({"traceparent": parent} if parent else {})

    def answer() -> None:
        call = telemetry.begin("http", "POST", carried, 60.0)
        call.model = "student"
        call.stages.update(STAGES)  # type: ignore[arg-type]
        add_stages(call)
        telemetry.end(call, METHOD, 200)

    return answer


def tracing_off() -> Callable[[], None]:
    """Make the core's tracing calls with tracing off."""
    call = Call(request_id="r" * 32, deadline=60.0)
    outcome = Outcome(METHOD, 200, None, is_fault=False, seconds=0.01)

    def answer() -> None:
        call.trace = begin_request(NO_TRACER, "http", "POST", {}, started=0.0)
        add_stages(call)
        call.trace.end(outcome)

    return answer


class Forgetful(InMemorySpanExporter):
    """Exporter that drops spans; the real one sends them in its own thread."""

    def export(self, spans: Any) -> Any:
        """Forget them."""
        result = super().export(spans)
        self.clear()
        return result


def add_stages(call: Call) -> None:
    """Record the stages of a request with one image in its own batch."""
    now = call.started
    for name in ("admit", "decode", "post"):
        call.trace.stage(name, now, now)
    call.trace.enter_queue(now)
    batch = begin_batch([call.trace], {"bucket": "image 112x112", "items": 1, "cost": 64}, now)
    batch.end(now)
    call.trace.ran_in(batch)


def cpu_us(answer: Callable[[], None], num_calls: int) -> float:
    """CPU microseconds of one call over all threads."""
    for _ in range(num_calls // 10):
        answer()
    started = time.process_time()
    for _ in range(num_calls):
        answer()
    time.sleep(0.2)  # let the log thread write its queue
    return 1e6 * (time.process_time() - started) / num_calls


def compare_calls(rounds: int, num_calls: int) -> None:
    """Measure one request's telemetry at increasing levels, alternating."""
    parent = f"00-{'a' * 32}-{'b' * 16}-"
    kinds = {
        "tracing calls, off": tracing_off(),
        "metrics only": whole_telemetry(is_logged=False, parent=None, is_traced=False),
        "metrics and log": whole_telemetry(is_logged=True, parent=None, is_traced=False),
        "  and tracing, not sampled": whole_telemetry(
            is_logged=True, parent=f"{parent}00", is_traced=True
        ),
        "  and tracing, sampled": whole_telemetry(
            is_logged=True, parent=f"{parent}01", is_traced=True
        ),
    }
    results: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, answer in kinds.items():
            results[name].append(cpu_us(answer, num_calls))
    print("one request's telemetry alone, CPU us on all threads:")
    for name, found in results.items():
        print(f"  {name:28} {statistics.median(found):6.1f}")


async def compare_service(sides: dict[str, tuple[int, int]], rounds: int, seconds: float) -> None:
    """Measure the whole service at increasing levels of telemetry."""
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
    """Collector that accepts and drops every export."""

    def do_POST(self) -> None:
        """Take it."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def collect(port: "SimpleQueue[int]") -> None:
    """Run the collector on a free port until the process is terminated."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Taker) as server:
        port.put(server.server_port)
        server.serve_forever()


@contextmanager
def collector() -> Iterator[str]:
    """Run the collector in its own process."""
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
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # a full queue is expected here
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
