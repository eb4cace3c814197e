"""The engine that a command line and the environment choose."""

from pathlib import Path

import pytest

from tipserve_cli.engines.choice import connect, read_key, settings_for
from tipserve_cli.engines.engine import EngineError


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://", "http://x?y=1", "grpc://", "grpc://x/path"]
)
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(EngineError, match="--url"):
        connect(url, None)


def test_a_key_comes_from_the_file_or_the_variable(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("first\nsecond\n", encoding="utf-8")
    assert read_key(file, {"TIPSERVE_API_KEY": "other"}) == "first"
    assert read_key(None, {"TIPSERVE_API_KEY": "other"}) == "other"
    assert read_key(None, {}) is None


def test_an_empty_key_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(EngineError, match="is empty"):
        read_key(file, {})


def test_settings_ignore_the_variables_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIPSERVE_URL", "http://x")
    monkeypatch.setenv("TIPSERVE_API_KEY", "x")
    monkeypatch.setenv("TIPSERVE_LANES", "1")
    assert settings_for(["--runtime=onnx"]).lanes == 1
    monkeypatch.setenv("TIPSERVE_LAMES", "1")
    with pytest.raises(EngineError, match="TIPSERVE_LAMES"):
        settings_for([])
