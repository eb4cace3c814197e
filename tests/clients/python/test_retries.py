"""What is tried again, when, and how often: a stand-in answers by a script, on the test's clock."""

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from tipserve_client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    Retry,
    TipserveError,
    Unavailable,
)
from tipserve_client.connection import Attempts

EMBEDDED = save({"cls1": np.ones((1, 1), np.float32)})


def refused(status: int, retry_after: str | None = None) -> httpx.Response:
    headers = {"X-Request-Id": "id-1"} | ({"Retry-After": retry_after} if retry_after else {})
    error = {"message": "No.", "type": "x", "code": f"code_{status}", "param": None}
    return httpx.Response(status, json={"error": error}, headers=headers)


def ok() -> httpx.Response:
    return httpx.Response(200, content=EMBEDDED)


class Script:
    """A server that answers in turn, and a clock that only pauses and answers move."""

    def __init__(
        self, answers: Iterable[httpx.Response | Exception], answer_s: float = 0.0
    ) -> None:
        self.answers = iter(answers)
        self._answer_s = answer_s
        self.now = 0.0
        self.pauses: list[float] = []
        self.allowed_ms: list[int] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.allowed_ms.append(int(request.headers["x-request-timeout-ms"]))
        self.now += self._answer_s
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    async def answer_later(self, request: httpx.Request) -> httpx.Response:
        return self.answer(request)

    async def sleep_later(self, seconds: float) -> None:
        self.sleep(seconds)


Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "aio"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Ask the script for one embedding, by either client."""

    async def run(script: Script, *, partial: Any = False, **options: Any) -> Any:
        if request.param == "sync":
            with Client("http://stand-in", **options) as client:
                inner: Any = client._transport
                inner._client._transport = httpx.MockTransport(script.answer)
                inner._clock = lambda: script.now
                client._clock, client._sleep = lambda: script.now, script.sleep
                return client.embed_images(b"image", partial=partial)
        async with AsyncClient("http://stand-in", **options) as later:
            inner = later._transport
            inner._client._transport = httpx.MockTransport(script.answer_later)
            inner._clock = lambda: script.now
            later._clock, later._sleep = lambda: script.now, script.sleep_later
            return await later.embed_images(b"image", partial=partial)

    return run


async def test_a_full_queue_is_tried_again_after_the_time_that_it_names(ask: Ask) -> None:
    script = Script([refused(429, "3"), refused(503, "2"), ok()])
    (embedding,) = await ask(script)
    assert embedding.cls1 == [1.0]
    first, second = script.pauses
    assert 3 + 0.05 <= first <= 3 + 0.1
    assert 2 + 0.1 <= second <= 2 + 0.2


async def test_without_a_time_pauses_double_and_end(ask: Ask) -> None:
    script = Script([refused(503)] * 9)
    with pytest.raises(Unavailable) as caught:
        await ask(script, retry=Retry(max_attempts=5, first_pause_s=1, max_pause_s=3))
    assert (caught.value.code, caught.value.request_id) == ("code_503", "id-1")
    assert len(script.pauses) == 4
    for pause_s, longest_s in zip(script.pauses, [1, 2, 3, 3], strict=True):
        assert longest_s / 2 <= pause_s <= longest_s


@pytest.mark.parametrize(
    ("status", "kind"), [(422, InvalidRequest), (500, InternalError), (504, DeadlineExceeded)]
)
async def test_what_would_fare_no_better_is_not_tried_again(
    ask: Ask, status: int, kind: type[TipserveError]
) -> None:
    script = Script([refused(status, "1"), ok()])
    with pytest.raises(kind):
        await ask(script)
    assert not script.pauses


async def test_errors_of_single_images_are_not_tried_again(ask: Ask) -> None:
    detail = {"message": "No.", "type": "x", "code": "invalid_image", "param": "images[0]"}
    errors = json.dumps([{"index": 0, "error": detail}])
    answer = httpx.Response(200, content=save({}, metadata={"errors": errors}))
    script = Script([refused(429, "1"), answer, ok()])
    (item,) = await ask(script, partial=True)
    assert isinstance(item.error, InvalidRequest)
    assert (item.error.code, item.error.index) == ("invalid_image", 0)
    assert len(script.pauses) == 1


async def test_a_connection_that_fails_is_tried_again(ask: Ask) -> None:
    script = Script([httpx.ConnectError("refused"), httpx.RemoteProtocolError("closed"), ok()])
    assert await ask(script)
    assert len(script.pauses) == 2


async def test_all_tries_share_one_deadline_which_the_server_is_told(ask: Ask) -> None:
    script = Script([refused(429, "2"), refused(429, "2"), ok()], answer_s=1.0)
    assert await ask(script, timeout_s=20)
    passed_ms = [20_000 - ms for ms in script.allowed_ms]
    assert passed_ms[0] == 0
    assert 3_000 < passed_ms[1] < 3_200
    assert 6_000 < passed_ms[2] < 6_500


async def test_nobody_waits_for_a_try_that_would_come_too_late(ask: Ask) -> None:
    script = Script([refused(429, "30"), ok()])
    with pytest.raises(Overloaded):
        await ask(script, timeout_s=5)
    assert not script.pauses


async def test_a_proxys_own_page_is_an_error_too(ask: Ask) -> None:
    script = Script([httpx.Response(403, text="<html>no</html>")])
    with pytest.raises(InternalError) as caught:
        await ask(script)
    assert caught.value.code == "http_403"


@pytest.mark.parametrize("raw", [b"<html>hello</html>", b"[]", b'{"data": [{}, 1]}', b"{}"])
async def test_a_server_of_another_kind_is_an_error_too(ask: Ask, raw: bytes) -> None:
    for partial in (False, True):
        with pytest.raises(InternalError) as caught:
            await ask(Script([httpx.Response(200, content=raw)]), partial=partial)
        assert caught.value.code == "invalid_answer"


class Trickle(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body of which a byte comes every second, by the script's clock."""

    def __init__(self, script: Script, body: bytes) -> None:
        self._script, self._body = script, body
        self.num_sent = 0

    def __iter__(self) -> Iterator[bytes]:
        for byte in self._body:
            self._script.now += 1
            self.num_sent += 1
            yield bytes([byte])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


async def test_an_answer_that_trickles_in_is_bounded_by_the_deadline_too(ask: Ask) -> None:
    script = Script([])
    body = Trickle(script, ok().content)
    script.answers = iter([httpx.Response(200, stream=body)])
    with pytest.raises(DeadlineExceeded):
        await ask(script, timeout_s=10)
    assert body.num_sent == 12
    assert not script.pauses
    script.answers = iter([httpx.Response(200, stream=Trickle(script, ok().content))])
    assert await ask(script, timeout_s=1000)


async def test_an_answer_that_cannot_be_unpacked_is_an_error_too(ask: Ask) -> None:
    with pytest.raises(InternalError) as caught:
        await ask(Script([httpx.DecodingError("incorrect header check")]))
    assert caught.value.code == "invalid_answer"


def test_unknown_options_are_errors() -> None:
    with Client("http://stand-in") as client, pytest.raises(TypeError, match="no option 'colour'"):
        client.embed_images(b"x", colour="red")  # type: ignore[call-overload]  # that is the test


@pytest.mark.parametrize("url", ["http://stand-in", "grpc://stand-in"])
async def test_a_window_has_room_for_a_image(url: str) -> None:
    with Client(url) as client, pytest.raises(ValueError, match="window"):
        client.stream_images([b"x"], window=0)
    async with AsyncClient(url) as later:
        with pytest.raises(ValueError, match="window"):
            later.stream_images([b"x"], window=0)


def test_only_the_time_in_which_an_answer_is_awaited_counts() -> None:
    now = 0.0
    attempts = Attempts(Retry(), 10, lambda: now, lambda: 1.0)
    for _ in range(3):
        now += 100  # the caller's own
        attempts.wait_for_answer()
        assert attempts.pause_s(Unavailable("draining")) < 10
        now += 8
        attempts.wait_for_answer()
        assert attempts.remaining_s() == pytest.approx(2)
        with pytest.raises(Unavailable):
            attempts.pause_s(Unavailable("draining", retry_after_s=3))
        attempts.reset()


@given(
    asked=st.lists(st.none() | st.floats(0, 5), max_size=10),
    retry=st.builds(
        Retry,
        max_attempts=st.integers(1, 8),
        first_pause_s=st.floats(0.01, 1),
        max_pause_s=st.floats(0.01, 4),
    ),
    timeout_s=st.floats(0.1, 20),
    draw=st.floats(0, 1),
)
def test_pauses_are_bounded_and_never_reach_the_deadline(
    asked: list[float | None], retry: Retry, timeout_s: float, draw: float
) -> None:
    now = 0.0
    attempts = Attempts(retry, timeout_s, lambda: now, lambda: draw)
    num_pauses = 0
    for retry_after_s in asked:
        try:
            pause_s = attempts.pause_s(Overloaded("full", retry_after_s=retry_after_s))
        except Overloaded:
            break
        num_pauses += 1
        assert (retry_after_s or 0) <= pause_s <= (retry_after_s or 0) + retry.max_pause_s
        now += pause_s
        assert now < timeout_s
    assert num_pauses < retry.max_attempts
