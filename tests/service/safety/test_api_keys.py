"""Keys: where they come from, what opens, how they are renewed, and that nobody sees them."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from service.errors import Unauthenticated
from service.monitoring.metrics import Metrics
from service.safety.api_keys import ApiKeys
from service.settings import Settings, describe_settings, load_settings
from tests.service.conftest import Clock

FIRST, SECOND, THIRD = ("first" * 4, "second" * 4, "third" * 4)


def opens(keys: ApiKeys, key: str) -> bool:
    outcomes = set()
    for shown in ((f"Bearer {key}", None), (f"bearer  {key}", None), (None, key)):
        try:
            keys.check(*shown)
            outcomes.add(True)
        except Unauthenticated:
            outcomes.add(False)
    assert len(outcomes) == 1, "both headers are read alike"
    return outcomes.pop()


def test_without_keys_everybody_may_ask(metrics: Metrics) -> None:
    keys = ApiKeys(metrics)
    keys.check(None, None)
    assert not keys.is_required


def test_several_keys_of_both_sources_open(metrics: Metrics, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n  {THIRD}  \n")
    keys = ApiKeys(metrics, fixed=f"{FIRST}, {SECOND},", file=file)
    assert [opens(keys, key) for key in (FIRST, SECOND, THIRD)] == [True, True, True]
    assert not opens(keys, FIRST[:-1])
    assert not opens(keys, FIRST + ",")
    assert not opens(keys, "")
    assert not opens(keys, "\xff" * 20)


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
def test_what_is_wrong_is_told_and_counted(
    metrics: Metrics, authorization: str | None, code: str
) -> None:
    with pytest.raises(Unauthenticated, match="X-Api-Key") as caught:
        ApiKeys(metrics, fixed=FIRST).check(authorization, None)
    assert caught.value.code == code
    refused = metrics.registry.get_sample_value(
        "tipserve_rejected_total", {"reason": "unauthenticated"}
    )
    assert refused == 1


def test_every_key_is_compared_whichever_fits(
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
    assert opens(keys, FIRST)
    clock.now += 1
    assert [opens(keys, key) for key in (FIRST, SECOND, THIRD)] == [False, True, True]


@pytest.mark.parametrize("text", ["", "# none left\n", "short", None])
def test_a_file_that_breaks_leaves_its_last_keys(
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
        assert opens(keys, FIRST)
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1, "said once"


@pytest.mark.parametrize("text", ["", "\n# a remark\n", "short", "k" * 600, f"{FIRST} {SECOND}"])
def test_a_file_without_good_keys_stops_the_start(
    metrics: Metrics, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ValueError, match="API key") as caught:
        ApiKeys(metrics, file=file)
    assert not text.strip() or text not in str(caught.value)


@pytest.mark.parametrize("content", ["\u00e4" * 20, "\ud800"])
def test_keys_are_ascii(metrics: Metrics, tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="ASCII"):
        ApiKeys(metrics, file=tmp_path / "keys")


@pytest.mark.parametrize("value", ["", " , "])
def test_a_variable_without_keys_stops_the_start(metrics: Metrics, value: str) -> None:
    with pytest.raises(ValueError, match="holds no API key"):
        ApiKeys(metrics, fixed=value)


def test_no_key_is_shown_or_logged(
    monkeypatch: pytest.MonkeyPatch, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TIPSERVE_API_KEYS", FIRST)
    environment = {"TIPSERVE_API_KEYS": FIRST}
    settings = load_settings([], environment)
    assert settings.api_keys is not None
    keys = ApiKeys(metrics, fixed=settings.api_keys.get_secret_value())
    assert opens(keys, FIRST)
    assert not opens(keys, SECOND)
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


def test_settings_name_a_file(tmp_path: Path) -> None:
    values: dict[str, Any] = {"api_keys_file": tmp_path / "keys"}
    assert Settings.model_validate(values).api_keys_file == tmp_path / "keys"
