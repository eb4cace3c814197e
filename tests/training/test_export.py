"""A package is written whole or not at all, and loads in transformers and in the runtimes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, Tipsv2Model, Tipsv2Processor

from model.export import package_writer
from model.export.graph_writer import PackageContent
from model.graphs import Part, graph_file
from model.package import ModelPackage, open_package
from model.parity.measure import ParityError
from model.publication import Repository
from training.__main__ import main
from training.export import export_package

PARTS: tuple[Part, ...] = ("vision", "text")


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")


@pytest.fixture
def ready_graphs(tiny_package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the graphs of the tiny package, because the exporter is slow."""

    def copy(_: PackageContent, folder: Path, __: object) -> None:
        shutil.copytree(tiny_package.path / "onnx", folder / "onnx")

    monkeypatch.setattr(package_writer, "write_graphs", copy)


def test_the_folder_has_every_part_and_nothing_of_this_machine(
    tiny_package: ModelPackage, tiny_checkpoint: Path, project_root: Path
) -> None:
    assert set(tiny_package.manifest.files) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "onnx/text_model.onnx",
        "onnx/vision_model.onnx",
        "processor_config.json",
        "reference.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert open_package(tiny_package.path) == tiny_package
    for path in tiny_package.path.rglob("*.*"):
        assert path.stat().st_mode & 0o444 == 0o444
        content = path.read_bytes()
        for place in (tiny_checkpoint, tiny_package.path, project_root):
            assert str(place).encode() not in content, path


def test_transformers_loads_the_same_folder(
    tiny_package: ModelPackage, tiny_model: Tipsv2Model
) -> None:
    model = AutoModel.from_pretrained(tiny_package.path)
    assert isinstance(model, Tipsv2Model)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    processor = AutoProcessor.from_pretrained(tiny_package.path)
    assert isinstance(processor, Tipsv2Processor)
    image = np.zeros((30, 40, 3), dtype=np.uint8)
    inputs = Tipsv2Processor.from_pretrained(tiny_package.path)(
        text=["a red cat"], images=[image], return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (1, 3, 56, 56)
    assert inputs["input_ids"].shape == (1, 64)
    with torch.no_grad():
        assert model(**inputs).logits_per_image.shape == (1, 1)


@pytest.mark.slow
def test_graphs_for_gpus_are_written_and_may_be_published(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "package"
    command = ["export", f"--checkpoint={checkpoint}", f"--output={output}", "--name=tiny"]
    assert main([*command, "--precision=fp16"]) == 0
    files = open_package(Repository(tmp_path / "models").publish(output)).manifest.files
    assert {graph_file(part, "fp16") for part in PARTS} <= files.keys()


@pytest.mark.usefixtures("ready_graphs")
def test_a_failed_gate_writes_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ParityError("graphs differ")

    monkeypatch.setattr(package_writer, "prove_package", fail)
    output = tmp_path / "models" / "tiny"
    with pytest.raises(ParityError):
        export_package(checkpoint, output, name="tiny")
    assert list(output.parent.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("ready_graphs")
def test_an_older_package_is_replaced_and_anything_else_is_kept(
    checkpoint: Path, tiny_package: ModelPackage, tmp_path: Path
) -> None:
    output = shutil.copytree(tiny_package.path, tmp_path / "models" / "tiny")
    (output / "left_over").write_text("old", encoding="utf-8")
    exported = export_package(checkpoint, output, name="renamed")
    assert exported.manifest.name == "renamed"
    assert open_package(output).manifest == exported.manifest
    assert [path.name for path in output.parent.iterdir()] == ["tiny"]
    assert not (output / "left_over").exists()
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="is no model package; choose another folder"):
        export_package(checkpoint, precious, name="tiny")
    assert (precious / "holiday.jpg").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *((n, None, f"{n} missing") for n in ("config.json", "tokenizer.json", "card.md")),
        ("scores.json", [{"task": "segmentation", "mIoU": 3}], "malformed scores"),
        ("provenance.json", {"variant": "tiny/14"}, "malformed scores or provenance"),
        (
            "provenance.json",
            {"licence": "Apache-2.0", "zero_shot": {"features": "keys"}},
            "malformed scores or provenance",
        ),
    ],
)
def test_an_incomplete_or_malformed_checkpoint_is_refused(
    checkpoint: Path, tmp_path: Path, name: str, content: object, message: str
) -> None:
    (checkpoint / name).unlink()
    if content is not None:
        (checkpoint / name).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        export_package(checkpoint, tmp_path / "tiny", name="tiny")
    assert not (tmp_path / "tiny").exists()


def test_missing_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights[max(weights)]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights"):
        export_package(checkpoint, tmp_path / "tiny", name="tiny")
