"""`check` puts new numbers in place of old ones, in manifest and card, or changes nothing."""

import shutil
from pathlib import Path

import pytest

from model.conversion.commands import run
from model.manifest import ParityEntry
from model.package import ModelPackage, open_package
from model.parity import command
from model.parity.command import write_parity
from model.parity.table import HEADING


@pytest.fixture
def package(tiny_package: ModelPackage, tmp_path: Path) -> ModelPackage:
    return open_package(shutil.copytree(tiny_package.path, tmp_path / "tiny"))


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


def test_what_another_machine_measured_stays(package: ModelPackage) -> None:
    old = package.manifest.parity
    entry = old[0]
    elsewhere = entry.model_copy(update={"runtime": "tensorrt", "precision": "fp16"})
    better = entry.model_copy(update={"max_abs_diff": 0.0})
    written = write_parity(write_parity(package, [elsewhere]), [better]).manifest.parity
    assert written == [better, elsewhere, *old[1:]]


def test_the_card_keeps_what_stands_around_the_table(package: ModelPackage) -> None:
    card = package.path / "README.md"
    text = card.read_text(encoding="utf-8")
    card.write_text(f"{text}\n## Licence\n\nFree.\n", encoding="utf-8")
    other: ParityEntry = package.manifest.parity[0].model_copy(update={"runtime": "elsewhere"})
    write_parity(package, [other])
    changed = card.read_text(encoding="utf-8")
    assert changed.count(HEADING) == 1
    assert "| elsewhere |" in changed
    assert changed.startswith(text.split(HEADING)[0])
    assert changed.endswith("\n\n## Licence\n\nFree.\n")


def test_a_failed_write_leaves_the_package_as_it_was(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(command, "write_manifest", fail)
    with pytest.raises(OSError, match="full"):
        write_parity(package, [package.manifest.parity[0].model_copy(update={"runtime": "new"})])
    assert open_package(package.path) == package
