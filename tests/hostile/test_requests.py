"""Broken and hostile requests over both protocols: each gets a right status, and nothing breaks."""

import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from tests.hostile import over_grpc, over_rest
from tests.hostile.images import draws
from tests.processes.server import Server, start_server
from tests.tools import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LIMIT_S = 60.0
NUM_EACH = 25
NUM_AT_ONCE = 4
ERROR_KEYS = {"message", "type", "code", "param"}
# What must not be in an answer.
LEAKS = ("Traceback", "Exception", "Error:", ".py", "site-packages", "object at 0x", "<class")
IMAGE_STATUSES = {200, 413, 422, 429}
BODY_STATUSES = IMAGE_STATUSES | {404, 406, 415}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server, which is well after all tests."""
    log = tmp_path_factory.mktemp("hostile") / "service.log"
    with start_server("--model=bundled-student", log=log) as service:
        yield service
        ready = service.ready
        assert httpx.get(ready, timeout=LIMIT_S).status_code == 200
        assert service.metric("tipserve_inflight") == 0
    assert service.process.returncode == 0
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if json.loads(line)["level"] == "ERROR"] == []


@pytest.fixture(scope="module")
def client(service: Server) -> Iterator[httpx.Client]:
    """Over REST."""
    with httpx.Client(base_url=service.rest, timeout=LIMIT_S) as client:
        yield client


@pytest.fixture(scope="module")
def channel(service: Server) -> Iterator[grpc.Channel]:
    """Over gRPC, with no limits but the server's."""
    names = ("send_message_length", "receive_message_length", "metadata_size")
    options = [(f"grpc.max_{name}", 2**26) for name in names]
    with grpc.insecure_channel(service.grpc, options) as channel:
        yield channel


def repeat(send: Callable[[random.Random], object]) -> None:
    """Send with many seeds, some at once."""
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        list(pool.map(lambda seed: send(random.Random(seed)), range(NUM_EACH)))


def check_rest(client: httpx.Client, body: over_rest.Body, allowed: set[int]) -> None:
    target, content, headers = body
    answer = client.post(target, content=content, headers=headers)
    assert answer.status_code in allowed, (answer.status_code, answer.text[:300])
    if answer.status_code >= 400:
        assert json.loads(answer.content)["error"].keys() == ERROR_KEYS
        assert not any(leak in answer.text for leak in LEAKS), answer.text
    elif answer.headers["content-type"] == over_rest.NPY:
        assert np.isfinite(np.load(BytesIO(answer.content), allow_pickle=False)).all()


def check_grpc(send: Callable[[], object], allowed: frozenset[str]) -> None:
    try:
        send()
        code, details = "OK", ""
    except grpc.RpcError as error:
        state: Any = error
        code, details = state.code().name, state.details() or ""
    assert code in allowed, (code, details)
    assert not any(leak in details for leak in LEAKS), details


@pytest.mark.parametrize("kind", draws())
def test_images(kind: str, client: httpx.Client, channel: grpc.Channel) -> None:
    draw = draws()[kind]

    def send(rng: random.Random) -> None:
        image, form = draw(rng), rng.choice(over_rest.FORMS)
        check_rest(client, form(image, rng), IMAGE_STATUSES)
        check_grpc(
            lambda: over_grpc.images(channel, image, rng, LIMIT_S), over_grpc.REFUSED | {"OK"}
        )

    repeat(send)


def test_bodies(client: httpx.Client) -> None:
    repeat(lambda rng: check_rest(client, over_rest.wrong_body(rng), BODY_STATUSES))


@pytest.mark.parametrize(
    ("send", "allowed"), over_grpc.SENDS, ids=lambda one: getattr(one, "__name__", "")
)
def test_rpcs(send: over_grpc.Send, allowed: frozenset[str], channel: grpc.Channel) -> None:
    repeat(lambda rng: check_grpc(lambda: send(channel, rng, LIMIT_S), allowed))


def test_answers_are_as_documented(service: Server, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    # 504: the deadline was a millisecond. 501: the package has no heads for maps. Data of the right
    # form may still be no image, and in a query everything is text.
    config.write_text(
        "[checks.not_a_server_error]\n"
        'expected-statuses = ["2xx", "3xx", "4xx", 501, 504]\n'
        "[checks.positive_data_acceptance]\nenabled = false\n"
        "[checks.negative_data_rejection]\nenabled = false\n",
        encoding="utf-8",
    )
    url = f"{service.rest}/openapi.json"
    options = ("--phases=coverage,fuzzing", "--max-examples=10", "--seed=1", "--no-color")
    ended = run("schemathesis", f"--config-file={config}", "run", url, *options, timeout_s=280)
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr
