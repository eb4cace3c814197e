"""`check` measures a package and prints a table."""

import shutil
from pathlib import Path

import pytest

from model.conversion.commands import run
from model.manifest import ParityEntry, ParityLimits
from model.package import ModelPackage, open_package
from model.parity import command
from model.parity.command import HEADING, parity_table, replace_section, write_parity

ENTRY = ParityEntry(
    file="onnx/vision_model.onnx",
    runtime="openvino",
    precision="bf16",
    reference="torch",
    sizes=[(1, 56, 56)],
    max_abs_diff=0.0756,
    min_cosine_cls=0.9999,
    mean_cosine_cls=0.99995,
    min_cosine_patches=0.9997,
    mean_cosine_patches=0.99998,
    mask_agreement=0.99999,
    clear_mask_agreement=1.0,
    limits=ParityLimits(min_mask_agreement=0.995),
)


def last_line(entry: ParityEntry) -> str:
    return parity_table([entry]).splitlines()[-1]


def test_a_row_rounds_shares_down_and_marks_failures() -> None:
    assert last_line(ENTRY) == (
        "| `onnx/vision_model.onnx` | openvino | bf16 | 7.6e-02 | 0.999900, 0.999950 "
        "| 0.999700, 0.999980 | 99.99 %, 100.00 % | yes |"
    )
    failed = ENTRY.model_copy(update={"mask_agreement": 0.99, "min_cosine_patches": None})
    assert "| 0.999980 | 99.00 %, 100.00 % | no |" in last_line(failed)
    assert "| not finite |" in last_line(ENTRY.model_copy(update={"is_finite": False}))
    assert "depth 1.23 % off" in last_line(ENTRY.model_copy(update={"depth_error": 0.0123}))


def test_a_card_without_the_table_gets_it_at_its_end() -> None:
    card = replace_section("# Title\n\nText.\n", [ENTRY])
    assert card.startswith(f"# Title\n\nText.\n\n{HEADING}\n")
    assert replace_section(card, [ENTRY]) == card


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


def test_results_of_other_backends_are_kept(package: ModelPackage) -> None:
    old = package.manifest.parity
    entry = old[0]
    elsewhere = entry.model_copy(update={"runtime": "tensorrt", "precision": "fp16"})
    better = entry.model_copy(update={"max_abs_diff": 0.0})
    written = write_parity(write_parity(package, [elsewhere]), [better]).manifest.parity
    assert written == [better, elsewhere, *old[1:]]


def test_the_card_keeps_its_text_around_the_table(package: ModelPackage) -> None:
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


def test_a_failed_write_leaves_the_package_unchanged(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(command, "write_manifest", fail)
    with pytest.raises(OSError, match="full"):
        write_parity(package, [package.manifest.parity[0].model_copy(update={"runtime": "new"})])
    assert open_package(package.path) == package
