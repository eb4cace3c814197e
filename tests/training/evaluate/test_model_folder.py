"""A model is found in its run's folder and in one of its own, and missed by name elsewhere."""

from pathlib import Path

import pytest

from training.evaluate.encoder import find_model


def _leave_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")


def test_a_run_keeps_its_model_below(tmp_path: Path) -> None:
    _leave_model(tmp_path / "run/model")
    assert find_model(tmp_path / "run") == tmp_path / "run/model"


def test_a_package_is_a_model_itself(tmp_path: Path) -> None:
    _leave_model(tmp_path / "package")
    assert find_model(tmp_path / "package") == tmp_path / "package"


def test_a_folder_without_either_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model yet: it needs a model folder"):
        find_model(tmp_path)
