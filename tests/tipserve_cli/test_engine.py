"""Engines: the one that options choose, its errors and retries, and the model in this process."""

import asyncio
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from safetensors.numpy import save

from service.models.served_model import ServedModel
from service.settings import Settings
from tests.service.conftest import Encode, FakeRuntime, Serving
from tests.tipserve_cli.conftest import MODEL
from tipserve_cli import local
from tipserve_cli.engine import (
    FIRST_ATTEMPTS,
    MAX_ATTEMPTS,
    Engine,
    UserError,
    connect,
    refuses_image,
)
from tipserve_cli.model_options import ModelOptions, opened_engine
from tipserve_client import Client, TipserveError, Unavailable
from tipserve_client.errors import InvalidRequest, NotSupported

EMBEDDED = save({"cls1": np.ones((1, 4), np.float32)})


def test_a_key_comes_from_the_file_or_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text("first\nsecond\n", encoding="utf-8")
    monkeypatch.setenv("TIPSERVE_API_KEY", "other")
    assert ModelOptions(api_key_file=file).read_key() == "first"
    assert ModelOptions().read_key() == "other"
    monkeypatch.delenv("TIPSERVE_API_KEY")
    assert ModelOptions().read_key() is None
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="is empty"):
        ModelOptions(api_key_file=file).read_key()


def test_settings_ignore_the_variables_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIPSERVE_URL", "http://x")
    monkeypatch.setenv("TIPSERVE_API_KEY", "x")
    monkeypatch.setenv("TIPSERVE_LANES", "1")
    assert local.settings_for(["--runtime=onnx"]).lanes == 1
    monkeypatch.setenv("TIPSERVE_LAMES", "1")
    with pytest.raises(UserError, match="TIPSERVE_LAMES"):
        local.settings_for([])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_errors_of_images_are_the_same_over_both_protocols(
    serving: Serving, protocol: str
) -> None:
    def ask(url: str) -> None:
        engine = connect(url, None)
        for bad in (b"no image", b"\xff" * 150_000, b"\xff" * 300_000):
            with pytest.raises(TipserveError) as raised:
                engine.client.embed_images(bad)
            assert refuses_image(raised.value)
        with pytest.raises(TipserveError) as raised:
            engine.client.segment(b"no image", ["a", "a"])
        assert not refuses_image(raised.value)
        engine.close()

    async with serving(max_image_bytes=100_000, max_request_bytes=200_000) as server:
        await asyncio.to_thread(ask, f"{protocol}://127.0.0.1:{server.ports[protocol]}")


def test_items_come_back_in_order_and_are_read_a_little_ahead() -> None:
    engine = Engine(Client("http://stand-in"), 2)
    read: list[int] = []

    def items() -> Iterable[int]:
        for item in range(20):
            read.append(item)
            yield item

    answered = engine.in_order(lambda item: 10 // (item - 7), items())
    first, future = next(answered)
    assert (first, future.result(), len(read)) == (0, -2, 5)
    failed = [item for item, future in answered if future.exception() is not None]
    assert (read, failed) == (list(range(20)), [7])
    engine.close()


def test_a_busy_server_is_asked_again_that_is_explained_once_and_an_unreachable_one_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = {"message": "The queue is full.", "code": "queue_full", "param": None}

    def full(retry_after: str = "0") -> httpx2.Response:
        return httpx2.Response(429, json={"error": error}, headers={"Retry-After": retry_after})

    busy = [httpx2.Response(status) for status in (429, 503, 504)]
    good = httpx2.Response(200, content=EMBEDDED)
    gone = [httpx2.Response(502) for _ in range(MAX_ATTEMPTS)]
    answers = iter([*busy, full("7"), good, *[full()] * MAX_ATTEMPTS, *gone])
    pauses: list[float] = []
    engine = connect("http://stand-in", None)
    client: Any = engine.client
    client._transport._client._transport = httpx2.MockTransport(lambda request: next(answers))
    client._sleep = pauses.append
    (found,) = client.embed_images(b"x")
    assert (found.cls1.shape, len(pauses), pauses[3] >= 7) == ((4,), 4, True)
    with pytest.raises(TipserveError, match=r"The queue is full\."):
        client.embed_images(b"x")
    assert len(pauses) == 4 + MAX_ATTEMPTS - 1
    assert len(caplog.messages) == 1
    monkeypatch.setattr("tipserve_cli.model_options.connect", lambda *_: engine)
    with (
        pytest.raises(UserError, match="http://stand-in is unavailable"),
        opened_engine(ModelOptions(url="http://stand-in")) as opened,
    ):
        opened.client.models()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_that_never_answered_is_given_up_soon_and_one_that_did_is_waited_for(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        engine = connect(f"{protocol}://127.0.0.1:{unused.getsockname()[1]}", None)
        client: Any = engine.client
        pauses: list[float] = []
        monkeypatch.setattr(client, "_sleep", pauses.append)
        monkeypatch.setattr(client, "models", lambda: [MODEL()])
        for num_pauses in (FIRST_ATTEMPTS - 1, MAX_ATTEMPTS - 1):
            with pytest.raises(Unavailable):
                client.embed_images(b"x")
            assert len(pauses) == num_pauses
            pauses.clear()
            engine.find_model(None)
        engine.close()


def test_a_model_in_this_process_answers_as_a_server_does(
    load_fake: Callable[..., ServedModel],
    runtime: FakeRuntime,
    encode_image: Encode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime.tasks = ("normals",)
    monkeypatch.setattr(local, "load_model", lambda *given, **_: load_fake(*given))
    transport = local.LocalTransport(Settings())
    assert transport.busy_window() > 1
    with Client(transport, timeout_s=60) as client:
        (normals_HW3,) = client.normals(encode_image())
        assert normals_HW3.shape == (30, 40, 3)
        assert np.allclose(np.linalg.norm(normals_HW3, axis=-1), 1)
        with pytest.raises(NotSupported, match="has a head for depth, but the runtime"):
            client.depth(encode_image())
        with pytest.raises(InvalidRequest) as refused:
            client.embed_images(b"no image")
        assert (refused.value.param, refused.value.code) == ("images[0]", "invalid_image")
        assert client.embed_texts(["a", "b"]).shape == (2, 8)
        assert [model.name for model in client.models()] == ["fake"]
