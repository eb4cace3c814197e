"""Keys come from a file or the environment."""

from pathlib import Path

import pytest

from training.captioning.gemini import read_api_key


def test_the_environment_has_it_under_either_name() -> None:
    assert read_api_key(None, {"GOOGLE_API_KEY": "g"}) == "g"
    assert read_api_key(None, {"GOOGLE_API_KEY": "g", "GEMINI_API_KEY": " m "}) == "m"


def test_a_named_file_goes_first(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("f\n")
    assert read_api_key(tmp_path / "key", {"GEMINI_API_KEY": "m"}) == "f"


def test_no_key_is_a_mistake_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GEMINI_API_KEY"):
        read_api_key(None, {"GEMINI_API_KEY": ""})
    (tmp_path / "key").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_api_key(tmp_path / "key", {})
    with pytest.raises(FileNotFoundError):
        read_api_key(tmp_path / "none", {})
