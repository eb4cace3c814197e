"""Several processes of one server: who answers, what is counted, what a lost one costs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.package import ModelPackage
from tests.end_to_end.test_rounds import wait_for_answers
from tests.processes.steady_callers import SteadyCallers

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Program, Service

RunService = Callable[..., Any]
LIMIT_S = 60.0
TWO = ("--workers=2", "--lanes=2", "--pool-threads=2")
REQUESTS = {
    "http": 'tipserve_requests_total{code="200",method="POST /v1/texts:embed",protocol="http"}',
    "grpc": 'tipserve_requests_total{code="OK",method="tipserve.v1.EncoderService/EmbedTexts",'
    'protocol="grpc"}',
}


def until(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


@pytest.fixture
def two(run_service: RunService) -> Iterator["Service"]:
    """A server of two workers that are both ready."""
    with run_service(*TWO) as service:
        service.program.wait_for("all workers are ready")
        yield service


def worker_pids(service: "Service") -> list[int]:
    """Of every worker that was started, in their order."""
    return [record["pid"] for record in service.program.records("worker started")]


def value(text: str, series: str) -> float:
    found = [line for line in text.splitlines() if line.startswith(series + " ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


def scraped_from_worker(service: "Service", number: int) -> str:
    """Metrics of one worker, as the supervisor reads them."""
    command = Path(f"/proc/{worker_pids(service)[number]}/cmdline").read_text().split("\0")
    place = json.loads(command[command.index("worker") + 1])
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LIMIT_S)
        sock.connect(place["report_socket"])
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with sock.makefile("rb") as answer:
            return answer.read().decode()


def test_both_protocols_reach_both_workers_and_one_port_has_the_sums(two: "Service") -> None:
    ask = {"http": two.over_rest, "grpc": two.over_grpc}
    counts: dict[str, list[float]] = {}
    for protocol, series in REQUESTS.items():
        sent = 0

        def shares(series: str = series) -> list[float]:
            return [value(scraped_from_worker(two, number), series) for number in (0, 1)]

        # Each is a new connection, which the kernel gives to one of the two.
        while not all(shares()):
            assert ask[protocol]("embed_texts", {"texts": ["dog"]}).status in {"200", "OK"}
            sent += 1
            assert sent < 200, "one worker got every connection"
        # REST counts after the answer is sent.
        until(lambda: sum(shares()) == sent, "the workers count every request once")  # noqa: B023
        counts[protocol] = shares()
    text = two.metrics()
    for protocol, series in REQUESTS.items():
        assert value(text, series) == sum(counts[protocol])
    assert value(text, "tipserve_ready") == 1
    assert value(text, "tipserve_workers_ready") == 2
    assert value(text, 'tipserve_lanes{model="tiny",state="ready"}') == 2
    assert value(text, 'tipserve_model_max_admitted_patches{model="tiny"}') == 65536
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names))


def test_a_killed_worker_loses_what_it_held_and_comes_back(
    two: "Service", photo: Callable[..., bytes]
) -> None:
    num_each, num_sharing = 3, 4
    with SteadyCallers(dict(two.ports), photo(), num_each=num_each) as callers:
        wait_for_answers(callers, 50)
        before = value(two.metrics(), 'tipserve_model_batches_total{model="tiny"}')
        os.kill(worker_pids(two)[0], signal.SIGKILL)
        until(lambda: two.metric("tipserve_workers_ready") == 1, "the other one serves")
        assert value(two.metrics(), 'tipserve_model_batches_total{model="tiny"}') >= before
        wait_for_answers(callers, 20)
        until(lambda: two.metric("tipserve_workers_ready") == 2, "the worker is back")
        wait_for_answers(callers, 20)
        assert value(two.metrics(), 'tipserve_model_batches_total{model="tiny"}') > before
    tally = callers.tally
    # Of each caller the request that it held, and the connection that it had not accepted yet.
    lost = tally.failed + tally.refused
    assert 0 < lost.total() <= 2 * (2 * num_each + num_sharing), tally
    assert two.metric("tipserve_worker_restarts_total") == 1
    assert len(worker_pids(two)) == 3


def test_sigterm_fails_readiness_first_and_drains_every_worker(
    run_service: RunService, photo: Callable[..., bytes]
) -> None:
    with run_service(*TWO, "--drain-delay-s=2") as service:
        service.program.wait_for("all workers are ready")
        ready = f"http://127.0.0.1:{service.ports['metrics']}/v2/health/ready"
        assert httpx.get(ready, timeout=LIMIT_S).status_code == 200
        with SteadyCallers(dict(service.ports), photo(), num_each=4) as callers:
            wait_for_answers(callers, 50)
            service.program.process.send_signal(signal.SIGTERM)
            until(
                lambda: httpx.get(ready, timeout=LIMIT_S).status_code == 503, "readiness is false"
            )
            assert service.program.process.wait(LIMIT_S) == 0
            callers.wait()
    tally = callers.tally
    assert not tally.failed, tally
    assert {"REST 200", "gRPC OK"} <= set(tally.answered)
    assert tally.refused == {"REST connection refused": 4, "gRPC connection refused": 8}, tally
    assert len(service.program.records("stopped")) == 2


def test_workers_end_when_their_supervisor_is_killed(
    run_program: "type[Program]", tiny_package: ModelPackage
) -> None:
    program = run_program(f"--model={tiny_package.path}", *TWO)
    program.wait_for("all workers are ready")
    program.process.kill()
    program.process.wait(LIMIT_S)
    # Standard error closes only with the last process that has it.
    program.reader.join(LIMIT_S)
    assert not program.reader.is_alive()
    assert len(program.records("stopped")) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--workers=2", "--model=no/such/folder"], 1, "no folder"),
        (
            ["--workers=2", "--http-port={taken}"],
            1,
            "the workers cannot listen on 127.0.0.1, port {taken}",
        ),
        (["--workers=2", "--enable-management"], 2, "enable_management needs workers=1"),
        (["--workers=none"], 2, "write a number of processes above 0, or auto"),
    ],
)
def test_a_server_that_cannot_start_says_why(arguments: list[str], status: int, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0", "--host=127.0.0.1"]
        given = [argument.format(taken=port) for argument in arguments]
        result = subprocess.run(
            [sys.executable, "-m", "service", *ports, *given],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    assert result.returncode == status, result.stderr
    assert words.format(taken=port) in result.stderr
    assert "Traceback" not in result.stderr
