"""What a stop, a swap, a lost worker and a failing graph cost the callers; all bare."""

import hashlib
import io
import json
import os
import signal
from collections import Counter
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.processes.callers import PROTOCOLS, Question, SteadyCallers, ask, until
from tests.processes.server import LIMIT_S, ROOT, Server, photo, start_server
from tests.promises.conftest import STUDENT, UNCACHED

STUDENT_FOLDER = ROOT / "model" / "bundled_student"
SAME_NUMBERS = STUDENT[1:]  # precision and runtime without the model
TWO = ("--workers=2", "--lanes=2", "--pool-threads=2")
EMBED_RPC = "tipserve.v1.EncoderService/EmbedImages"
GREY = 200
VISION = "onnx/vision_model.onnx"


@pytest.mark.parametrize("flags", [(), TWO], ids=["one process", "two workers"])
def test_a_stop_under_load_loses_nothing(flags: tuple[str, ...]) -> None:
    """Callers heed readiness, which fails first."""
    with start_server(*UNCACHED, "--drain-delay-s=2", *flags, is_ended=True) as server:
        if flags:
            until(lambda: server.metric("tipserve_workers_ready") == 2, "both workers are ready")
        with SteadyCallers(server) as callers:
            callers.wait_for(30)
            server.process.send_signal(signal.SIGTERM)
            callers.wait_until_heeded()
        assert server.process.wait(LIMIT_S) == 0
    assert not callers.others, callers.outcomes


def change_file(package: Path, name: str, content: bytes, *, is_listed: bool) -> None:
    """Write a file of a package, and its digest into the manifest if it is listed there."""
    (package / name).write_bytes(content)
    manifest = package / "tipserve.json"
    fields: dict[str, Any] = json.loads(manifest.read_text())
    if is_listed:
        digest = hashlib.sha256(content).hexdigest()
        fields["files"][name] = {"sha256": digest, "size_bytes": len(content)}
        manifest.write_text(json.dumps(fields))


def test_swaps_lose_nothing_also_those_that_fail(tmp_path: Path) -> None:
    for name in ("first", "again", "broken", "changed"):
        copytree(STUDENT_FOLDER, tmp_path / name)
    graph = (STUDENT_FOLDER / VISION).read_bytes()
    change_file(tmp_path / "broken", VISION, graph[: len(graph) // 2], is_listed=True)
    change_file(tmp_path / "changed", VISION, graph[:-1] + b"x", is_listed=False)
    flags = ("--enable-management", f"--model-repository={tmp_path}")

    def load(package: str) -> httpx.Response:
        url = f"{server.rest}/v2/repository/models/served/load"
        return httpx.post(url, json={"parameters": {"package": package}}, timeout=LIMIT_S)

    with start_server(*UNCACHED, "--lanes=1", *flags) as server:
        assert load("first").status_code == 200
        with SteadyCallers(server, question=Question(model="served"), num_each=2) as callers:
            for package in ("again", "broken", "changed", "first"):
                callers.wait_for(5)
                answer = load(package)
                is_good = package in {"first", "again"}
                assert (answer.status_code == 200) == is_good, answer.text
                assert is_good or 400 <= answer.status_code < 500, answer.text
            callers.wait_for(5)
    assert not callers.others, callers.outcomes


def worker_pids(server: Server) -> list[int]:
    """Processes that the server has started."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    pids = map(int, children.read_text().split())
    return [pid for pid in pids if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_two_workers_count_together_and_a_killed_one_is_replaced() -> None:
    def num_counted(protocol: str) -> float:
        method = "POST /v1/images:embed" if protocol == "rest" else EMBED_RPC
        lines = httpx.get(server.metrics, timeout=LIMIT_S).text.splitlines()
        wanted = [n for n in lines if n.startswith("tipserve_requests_total{") and method in n]
        return sum(float(line.rpartition(" ")[2]) for line in wanted)

    with start_server(*UNCACHED, *TWO) as server:
        until(lambda: server.metric("tipserve_workers_ready") == 2, "both workers are ready")
        for protocol in PROTOCOLS:
            before = num_counted(protocol)
            for _ in range(16):  # each on a new connection, which reaches one of the two
                assert ask(server, protocol, Question()).outcome().kind == "served"
            until(lambda: num_counted(protocol) == before + 16, "every one counts")  # noqa: B023
        first, second = worker_pids(server)
        num_batches = server.metric("tipserve_model_batches_total")
        with SteadyCallers(server) as callers:
            callers.wait_for(10)
            os.kill(first, signal.SIGKILL)
            until(lambda: server.metric("tipserve_workers_ready") == 1, "one serves")
            assert server.metric("tipserve_model_batches_total") >= num_batches
            callers.wait_for(10)
            until(lambda: server.metric("tipserve_workers_ready") == 2, "the worker is back")
            callers.wait_for(10)
        assert len(set(worker_pids(server)) - {first}) == 2
        assert second in worker_pids(server)
    # Of each caller what the lost worker held, and once more to connect.
    assert len(callers.others) <= 2 * 8, callers.outcomes


def fail_on_grey_images(package: Path) -> None:
    """Let the vision graph fail if the darkest value of an image is that of `GREY`."""
    graph = onnx.load(str(package / VISION))
    pixels = graph.graph.input[0].name
    constants = {"axes": np.array([1, 2, 3]), "first": np.array([0])}
    constants |= {"grey": np.array(GREY / 255, np.float32), "near": np.array(0.01, np.float32)}
    constants |= {"one": np.ones(1, np.float32)}
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("ReduceMin", [pixels, "axes"], "darkest", {"keepdims": 0}),
        ("Sub", ["darkest", "grey"], "difference", {}),
        ("Abs", ["difference"], "distances", {}),
        ("ReduceMin", ["distances", "first"], "distance", {"keepdims": 0}),
        ("Less", ["distance", "near"], "is_grey", {}),
        ("Cast", ["is_grey"], "index", {"to": TensorProto.INT64}),
        # There is one element, so the index 1 is an error.
        ("Gather", ["one", "index"], "factor", {}),
        ("Mul", [pixels, "factor"], "checked", {}),
    ]
    for node in graph.graph.node:
        node.input[:] = ["checked" if name == pixels else name for name in node.input]
    old = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend(helper.make_node(k, i, [o], **options) for k, i, o, options in steps)
    graph.graph.node.extend(old)
    graph.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    change_file(package, VISION, graph.SerializeToString(), is_listed=True)


def grey() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (112, 112), (GREY,) * 3).save(stream, "PNG")
    return stream.getvalue()


def test_a_graph_that_fails_on_an_image_fails_its_batch_only(tmp_path: Path) -> None:
    package = copytree(STUDENT_FOLDER, tmp_path / "package")
    fail_on_grey_images(package)
    # A batch of one image each, so that no other shares the fate of the grey one.
    flags = ("--lanes=2", "--max-batch-images=1")
    ended: Counter[str] = Counter()
    with start_server(f"--model={package}", *SAME_NUMBERS, *flags) as server:
        with SteadyCallers(server, question=Question(images=[photo()]), num_each=2) as callers:
            for number in range(6):
                callers.wait_for(3)
                question = Question(images=[grey()])
                ended[ask(server, PROTOCOLS[number % 2], question).outcome().kind] += 1
            callers.wait_for(10)
        for probe in ("ready", "live"):
            url = server.metrics.replace("/metrics", f"/v2/health/{probe}")
            assert httpx.get(url, timeout=LIMIT_S).status_code == 200
    assert ended == {"failed": 6}
    assert not callers.others, (callers.outcomes, callers.others[:3])
