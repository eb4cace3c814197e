"""API keys: sources, checks, renewal, and that they are never shown."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.errors import Unauthenticated
from service.monitoring.metrics import Metrics
from service.safety.api_keys import ApiKeys
from service.settings import describe_settings, load_settings
from tests.service.conftest import Clock

FIRST, SECOND, THIRD = ("first" * 4, "second" * 4, "third" * 4)


def is_accepted(keys: ApiKeys, key: str) -> bool:
    outcomes = set()
    for shown in ((f"Bearer {key}", None), (f"bearer  {key}", None), (None, key)):
        try:
            keys.check(*shown)
            outcomes.add(True)
        except Unauthenticated:
            outcomes.add(False)
    assert len(outcomes) == 1, "both headers are read alike"
    return outcomes.pop()


def test_without_keys_every_request_is_accepted(metrics: Metrics) -> None:
    keys = ApiKeys(metrics)
    keys.check(None, None)
    assert not keys.is_required


def test_keys_of_both_sources_are_accepted(metrics: Metrics, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n  {THIRD}  \n")
    keys = ApiKeys(metrics, fixed=f"{FIRST}, {SECOND},", file=file)
    assert [is_accepted(keys, key) for key in (FIRST, SECOND, THIRD)] == [True, True, True]
    assert not is_accepted(keys, FIRST[:-1])
    assert not is_accepted(keys, FIRST + ",")
    assert not is_accepted(keys, "")
    assert not is_accepted(keys, "\xff" * 20)


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
        ApiKeys(metrics, fixed=FIRST).check(authorization, None)
    assert caught.value.code == code
    refused = metrics.registry.get_sample_value(
        "tipserve_rejected_total", {"reason": "unauthenticated"}
    )
    assert refused == 1


def test_every_key_is_compared_in_constant_time(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ApiKeys(metrics, fixed=f"{FIRST},{SECOND},{THIRD}")
    compared: list[int] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(len(one))
        return one == other

    monkeypatch.setattr("service.safety.api_keys.hmac.compare_digest", compare)
    keys.check(None, FIRST)
    assert compared == [32, 32, 32], "digests of equal length, all of them"


def test_the_file_is_read_again_when_it_changes(metrics: Metrics, tmp_path: Path) -> None:
    file, clock = tmp_path / "keys", Clock()
    file.write_text(FIRST)
    keys = ApiKeys(metrics, file=file, clock=clock)
    file.write_text(f"{SECOND}\n{THIRD}\n")
    assert is_accepted(keys, FIRST)
    clock.now += 1
    assert [is_accepted(keys, key) for key in (FIRST, SECOND, THIRD)] == [False, True, True]


@pytest.mark.parametrize("text", ["", "# none left\n", "short", None])
def test_a_broken_file_keeps_its_last_keys(
    metrics: Metrics, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    file, clock = tmp_path / "keys", Clock()
    file.write_text(FIRST)
    keys = ApiKeys(metrics, file=file, clock=clock)
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    for _ in range(3):
        clock.now += 1
        assert is_accepted(keys, FIRST)
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1, "logged once"


BAD_KEYS = ["", "\n# a remark\n", "short", "k" * 600, f"{FIRST} {SECOND}", "\u00e4" * 20, "\ud800"]


@pytest.mark.parametrize("text", BAD_KEYS)
def test_a_file_without_good_keys_stops_the_start(
    metrics: Metrics, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"API key|ASCII") as caught:
        ApiKeys(metrics, file=file)
    assert not text.strip() or text not in str(caught.value)
    with pytest.raises(ValueError, match="holds no API key"):
        ApiKeys(metrics, fixed=" , ")


def test_no_key_is_shown_or_logged(
    monkeypatch: pytest.MonkeyPatch, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TIPSERVE_API_KEYS", FIRST)
    environment = {"TIPSERVE_API_KEYS": FIRST}
    settings = load_settings([], environment)
    assert settings.api_keys is not None
    keys = ApiKeys(metrics, fixed=settings.api_keys.get_secret_value())
    assert is_accepted(keys, FIRST)
    assert not is_accepted(keys, SECOND)
    shown = describe_settings(settings, [], environment)
    assert "api_keys = **********  (variable TIPSERVE_API_KEYS)" in shown
    everything = shown + repr(settings) + repr(vars(keys)) + caplog.text
    assert FIRST not in everything
    assert SECOND not in everything


@pytest.mark.parametrize("arguments", [["--api-keys", FIRST], [f"--api-keys={FIRST}"]])
def test_keys_on_a_command_line_are_refused(arguments: Sequence[str]) -> None:
    with pytest.raises(ValueError, match="TIPSERVE_API_KEYS") as caught:
        load_settings(arguments, {})
    assert FIRST not in str(caught.value)
