"""Traces and log lines of the real program.

The receiver in `examples/` shows traces of both protocols through the proxy.
"""

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from tests.deploy.kustomizations import build
from tests.deploy.workloads import workloads
from tests.end_to_end.conftest import RunService
from tests.processes.callers import PROTOCOLS, Question, ask
from tests.processes.front import BEHIND, Front
from tests.processes.server import LIMIT_S, ROOT, start_server
from tipserve_client import Client

TRACES = {"rest": "0af7651916cd43dd8448eb211c80319c", "grpc": "4bf92f3577b34da6a3ce929d0e0e4736"}
CALLER = "b7ad6b7169203331"
ROOTS = {"rest": "POST /v1/images:embed", "grpc": "tipserve.v1.EncoderService/EmbedImages"}
# The headers are read first; what they say is admitted, and then decoded.
STAGES = ["decode", "admit", "queue", "run", "post"]


def pod() -> dict[str, str]:
    """The pod's variables, with names filled in as by Kubernetes."""
    (server,) = (one.servers[0] for one in workloads(build("everything")) if one.servers)
    (value,) = [v["value"] for v in server["env"] if v["name"] == "OTEL_RESOURCE_ATTRIBUTES"]
    # All spans are exported at the end, so that no trace is split in two.
    return {
        "OTEL_RESOURCE_ATTRIBUTES": value.replace("$(POD_NAME)", "tipserve-0"),
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
    }


def test_traces_come_through_the_proxy_and_are_shown_as_trees(tmp_path: Path) -> None:
    watch = [sys.executable, str(ROOT / "examples" / "watch_traces.py"), "--port=0"]
    flags = ("--model=bundled-student", "--lanes=1", "--image-cache-bytes=0", *BEHIND)
    log = tmp_path / "service.log"
    pipe = subprocess.PIPE
    with subprocess.Popen(watch, stdout=pipe, stderr=pipe, text=True) as watcher:
        try:
            assert watcher.stderr is not None
            endpoint = f"--otlp-endpoint={watcher.stderr.readline().split()[-1]}"
            with start_server(*flags, endpoint, env=pod(), log=log) as server:
                ports = server.ports
                with Front(tmp_path, (ports["http"], ports["grpc"])) as front:
                    place = front.place
                    for protocol in PROTOCOLS:
                        headers = {"traceparent": f"00-{TRACES[protocol]}-{CALLER}-01"}
                        outcome = ask(place, protocol, Question(headers=headers)).outcome()
                        assert outcome.kind == "served"
            # The server has drained, so all spans have arrived.
        finally:
            watcher.terminate()
        shown, _ = watcher.communicate(timeout=LIMIT_S)
    for protocol in PROTOCOLS:
        tree = re.search(
            rf"^trace {TRACES[protocol]}  tipserve tipserve-0\n((?:  .*\n?)+)", shown, re.M
        )
        assert tree, shown
        first, *rest = tree[1].splitlines()
        assert ROOTS[protocol] in first
        assert f"parent={CALLER}" in first
        assert [line.split()[0] for line in rest if line.startswith("    ")] == STAGES
    logged = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    answered = [record for record in logged if record["message"] == "answered"]
    assert len({record["request_id"] for record in answered}) == len(PROTOCOLS)
    assert {record["trace_id"] for record in logged if "trace_id" in record} == {*TRACES.values()}
    page = (ROOT / "docs" / "tracing.md").read_text(encoding="utf-8")
    named = set(re.findall(r" ([a-z]+\.[a-z_.]+)=", shown))
    assert len(named) > 8
    assert {name for name in named if f"`{name}`" not in page} == set()


def test_a_deaf_collector_wild_bytes_and_a_log_that_is_not_read_stop_nothing(
    run_service: RunService, tmp_path: Path
) -> None:
    """The pipe of the log holds one page and is not read; the log of these requests needs many."""
    log = tmp_path / "log"
    os.mkfifo(log)
    pipe = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        collector = f"--otlp-endpoint=http://127.0.0.1:{deaf.getsockname()[1]}"
        # The exit status must be 0.
        with run_service(collector, log=log) as service, Client(service.rest) as client:
            for name, wild in (("http", b"\x16\x03\x01 no HTTP\r\n\r\n"), ("grpc", b"GET / HTTP")):
                address = ("127.0.0.1", service.ports[name])
                with socket.create_connection(address) as connection:
                    connection.sendall(wild)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1000)
            for _ in range(100):
                client.embed_texts(["dog"])
    os.close(pipe)
