"""API keys: sources, checks, renewal, limits, and that they are never shown."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import Overloaded, Unauthenticated
from service.monitoring.metrics import Metrics
from service.safety.api_keys import ApiKeys
from service.settings import load_settings
from tests.service.callers import LIMIT_S
from tests.service.conftest import Clock, Serving

FIRST, SECOND, THIRD = ("first" * 4, "second" * 4, "third" * 4)


def is_accepted(keys: ApiKeys, key: str) -> bool:
    outcomes = set()
    for shown in ((f"Bearer {key}", None), (f"bearer  {key}", None), (None, key)):
        try:
            keys.enter(*shown)
            outcomes.add(True)
        except Unauthenticated:
            outcomes.add(False)
    assert len(outcomes) == 1, "both headers are read alike"
    return outcomes.pop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_keys_of_both_sources_are_accepted_and_a_changed_file_is_read_again(
    metrics: Metrics, file: Path, clock: Clock
) -> None:
    file.write_text(f"# ours\n\n  {THIRD}  \n")
    keys = ApiKeys(metrics, fixed=f"{FIRST}, {SECOND},", file=file, clock=clock)
    assert [is_accepted(keys, key) for key in (FIRST, SECOND, THIRD)] == [True, True, True]
    for wrong in (FIRST[:-1], FIRST + ",", "", "\xff" * 20):
        assert not is_accepted(keys, wrong)
    file.write_text("fourth" * 4)
    clock.now += 1
    assert [is_accepted(keys, key) for key in (FIRST, THIRD, "fourth" * 4)] == [True, False, True]
    open_to_all = ApiKeys(metrics)
    open_to_all.enter(None, None)
    assert not open_to_all.is_required


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "missing_api_key"),
        (f"Basic {FIRST}", "missing_api_key"),
        (FIRST, "missing_api_key"),
        ("Bearer other", "invalid_api_key"),
        ("Bearer", "missing_api_key"),
    ],
)
def test_a_refused_key_has_its_code_and_is_counted(
    metrics: Metrics, authorization: str | None, code: str
) -> None:
    with pytest.raises(Unauthenticated, match="X-Api-Key") as caught:
        ApiKeys(metrics, fixed=FIRST).enter(authorization, None)
    assert caught.value.code == code
    labels = {"reason": "unauthenticated"}
    assert metrics.registry.get_sample_value("tipserve_rejected_total", labels) == 1


def test_every_key_is_compared_in_constant_time(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ApiKeys(metrics, fixed=f"{FIRST},{SECOND},{THIRD}")
    compared: list[int] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(len(one))
        return one == other

    monkeypatch.setattr("service.safety.api_keys.hmac.compare_digest", compare)
    keys.enter(None, FIRST)
    assert compared == [32, 32, 32], "digests of equal length, all of them"


BAD_KEYS = ["", "\n# a remark\n", "short", "k" * 600, f"{FIRST} {SECOND}", "\u00e4" * 20, "\ud800"]


@pytest.mark.parametrize("text", BAD_KEYS)
def test_a_source_without_good_keys_stops_the_start(
    metrics: Metrics, file: Path, text: str
) -> None:
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="API key") as caught:
        ApiKeys(metrics, file=file)
    assert not text.strip() or text not in str(caught.value)
    with pytest.raises(ValueError, match=r"api_keys_file: .*/none.*; write one key a line"):
        ApiKeys(metrics, file=file.parent / "none")


def test_keys_on_a_command_line_are_refused() -> None:
    for arguments in (["--api-keys", FIRST], [f"--api-keys={FIRST}"]):
        with pytest.raises(ValueError, match="TIPSERVE_API_KEYS") as caught:
            load_settings(arguments, {})
        assert FIRST not in str(caught.value)


Limited = Callable[..., ApiKeys]


@pytest.fixture
def limited(metrics: Metrics, file: Path, clock: Clock) -> Limited:
    """Two keys of one caller with these options, and one without a name."""

    def make(options: str, num_workers: int = 1) -> ApiKeys:
        file.write_text(f"{FIRST} name=acme {options}\n{SECOND}  name=acme {options}\n{THIRD}\n")
        return ApiKeys(metrics, file=file, clock=clock, num_workers=num_workers)

    return make


def refused(keys: ApiKeys, key: str) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        keys.enter(None, key)
    return caught.value


def test_a_callers_rate_is_shared_by_its_keys(
    metrics: Metrics, clock: Clock, limited: Limited
) -> None:
    def count(outcome: str, caller: str = "acme") -> float:
        labels = {"caller": caller, "outcome": outcome}
        return metrics.registry.get_sample_value("tipserve_caller_requests_total", labels) or 0

    keys = limited("requests_per_s=2")
    keys.enter(None, FIRST)()
    keys.enter(None, SECOND)()
    error = refused(keys, FIRST)
    assert (error.code, error.retry_after_s) == ("key_rate_exceeded", 0.5)
    assert "2 requests a second" in error.message
    for _ in range(9):
        keys.enter(None, THIRD)()
    assert count("accepted", "unnamed") == 9
    clock.now += 0.5
    keys.enter(None, FIRST)()
    assert (count("accepted"), count("too_fast")) == (3, 1)
    clock.now += 100
    for _ in range(2):
        keys.enter(None, FIRST)
    refused(keys, FIRST)


def test_of_two_known_keys_the_later_one_of_the_source_counts(
    metrics: Metrics, limited: Limited
) -> None:
    keys = limited("requests_at_once=9")
    # THIRD, which has no name, stands last in the file.
    for shown in ((f"Bearer {FIRST}", THIRD), (f"Bearer {THIRD}", FIRST)):
        keys.enter(*shown)
    for caller, expected in (("acme", None), ("unnamed", 2)):
        labels = {"caller": caller, "outcome": "accepted"}
        found = metrics.registry.get_sample_value("tipserve_caller_requests_total", labels)
        assert found == expected


def test_each_of_several_workers_has_its_share_of_a_callers_limits(limited: Limited) -> None:
    keys = limited("requests_at_once=5", num_workers=2)
    release, _ = keys.enter(None, FIRST), keys.enter(None, SECOND)
    error = refused(keys, FIRST)
    assert error.code == "key_busy"
    assert "5 requests in progress, divided among 2 processes" in error.message
    release()
    keys.enter(None, FIRST)
    keys = limited("requests_per_s=4", num_workers=2)
    for _ in range(2):
        keys.enter(None, FIRST)
    error = refused(keys, FIRST)
    assert "4 requests a second, divided among 2 processes" in error.message
    assert error.retry_after_s == 0.5
    with pytest.raises(ValueError, match="requests_at_once of acme is divided among 2 workers"):
        limited("requests_at_once=1", num_workers=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("name=Acme", "a name has up to 40"),
        ("requests_per_s=2", "limits need a name"),
        ("name=a rate=2", "write only name=..., requests_per_s=..., requests_at_once=..., once"),
        ("name=a name=b", "once"),
        ("name=a requests_per_s=fast", "are numbers above 0"),
        ("name=a requests_per_s=inf", "are numbers above 0"),
        ("name=a requests_at_once=0", "are numbers above 0"),
        (f"name=a\n{SECOND} name=a requests_per_s=2", "a has other limits before"),
        (f"name=a\n{FIRST} name=b", "keys: the key is also that of a; keep one of the two"),
        (f"name=a\n{FIRST}", "the key is also that of a"),
        ("\n" + "\n".join(f"{FIRST}{n} name=n{n}" for n in range(101)), "102 names, at most 100"),
    ],
)
def test_wrong_options_of_a_key_are_errors_without_the_key(
    metrics: Metrics, file: Path, options: str, message: str
) -> None:
    file.write_text(f"{FIRST} {options}\n")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        ApiKeys(metrics, file=file)
    assert FIRST not in str(caught.value)


async def test_a_request_without_a_key_is_refused_before_its_body_is_sent(serving: Serving) -> None:
    head = b"POST /v1/images:embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    async with serving(api_keys=FIRST) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.ports["http"])
        writer.write(head + b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n")
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_S)
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 401"), "and not 100 Continue"
    assert b'www-authenticate: Bearer realm="tipserve"' in answer
