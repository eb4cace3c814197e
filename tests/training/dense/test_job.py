"""The whole job in miniature: furniture in, a package with depth and normals out."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.labelled.sets import read_depth
from model.package import ModelPackage, open_package
from model.runtime.load import load_runtime
from tests.training.furniture import write_catalogue
from training.__main__ import main
from training.data.renders import catalogues
from training.dense import rooms


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with two catalogues and no photograph."""
    folder = tmp_path / "data"
    furniture = folder / "debian/usr/share/sweethome3d/furniture"
    for name in ("Test", catalogues.HELD_OUT):
        write_catalogue(furniture / f"{name}.sh3f")
    (folder / "debian/usr/share/backgrounds").mkdir(parents=True)
    monkeypatch.setattr(rooms, "load_photos", lambda *_: ())
    return folder


def test_a_package_gets_depth_and_normals(
    data: Path, tiny_package: ModelPackage, tmp_path: Path
) -> None:
    folders = {"--data": data, "--folder": tmp_path / "run", "--output": tmp_path / "package"}
    given = folders | {"--model": tiny_package.path, "--kind": "linear"}
    numbers = {"--renders": 8, "--tests": 3, "--steps": 4}
    command = ["dense-heads", *(str(part) for pair in (given | numbers).items() for part in pair)]
    assert main(command) == 0
    package = open_package(tmp_path / "package")
    scores = {(s.task, s.row, s.metric) for s in package.manifest.scores}
    assert ("depth", "head", "RMSE (m)") in scores
    assert ("surface normals", "head - training mean", "mean angle (degrees)") in scores
    fitted: Any = package.manifest.provenance["dense_heads"]
    assert fitted["depth"]["kind"] == "linear"
    assert "CC-BY-3.0" in fitted["normals"]["furniture"]
    card = (package.path / "README.md").read_text(encoding="utf-8")
    assert "8 rendered rooms" in card
    assert "z towards the camera" in card
    pixels = np.random.default_rng(0).random((1, 3, 56, 56), np.float32)
    with closing(load_runtime(package, runtime="onnx")) as runtime:
        assert runtime.tasks == ("depth", "normals")
        assert runtime.estimate("depth", pixels).shape == (1, 32, 32)
    tests = tmp_path / "run/tests-56-3"
    assert np.isfinite(read_depth(tests / "images", tests / "depths").read(2)).all()
