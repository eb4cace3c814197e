"""`check` measures a package, prints a table, and writes it if asked."""

import shutil
from pathlib import Path

import pytest

from model.card import PARITY
from model.conversion.commands import run
from model.package import ModelPackage, open_package
from model.parity import command
from model.parity.command import write_parity


@pytest.fixture
def package(tiny_package: ModelPackage, tmp_path: Path) -> ModelPackage:
    return open_package(shutil.copytree(tiny_package.path, tmp_path / "tiny"))


@pytest.mark.slow
def test_the_command_measures_and_writes(
    package: ModelPackage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", str(package.path)]) == 0
    assert "| `onnx/vision_model.onnx` | onnx | fp32 |" in capsys.readouterr().out
    assert open_package(package.path) == package
    assert run(["check", str(package.path), "--write"]) == 0
    written = open_package(package.path)
    assert {(entry.runtime, entry.precision) for entry in written.manifest.parity} >= {
        ("onnx", "fp32"),
        ("openvino", "fp32"),
    }


def test_results_of_other_backends_are_kept_and_the_card_has_all(package: ModelPackage) -> None:
    card = package.path / "README.md"
    text = card.read_text(encoding="utf-8").partition(PARITY)[0]
    entry, *others = package.manifest.parity
    elsewhere = entry.model_copy(update={"runtime": "tensorrt", "precision": "fp16"})
    better = entry.model_copy(update={"max_abs_diff": 0.0})
    written = write_parity(write_parity(package, [elsewhere]), [better])
    assert open_package(package.path).manifest == written.manifest
    assert written.manifest.parity == [better, elsewhere, *others]
    changed = card.read_text(encoding="utf-8")
    assert changed.startswith(f"{text}{PARITY}\n")
    assert "| tensorrt |" in changed.split(PARITY)[1]


def test_a_failed_write_leaves_the_package_unchanged(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(command, "write_manifest", fail)
    with pytest.raises(OSError, match="full"):
        write_parity(package, [package.manifest.parity[0].model_copy(update={"runtime": "new"})])
    assert open_package(package.path) == package
