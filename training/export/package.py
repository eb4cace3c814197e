"""Turns a training checkpoint into a model package, whole or not at all.

A checkpoint is a `save_pretrained` folder of a Tipsv2Model with its tokenizer, and beside it
`scores.json` (a list of score entries), `provenance.json` (an object with at least `licence`;
`variant` and `zero_shot` are lifted into the manifest) and `card.md` (the model card's text).
"""

import math
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue, TypeAdapter, ValidationError
from transformers import Tipsv2ImageProcessor, Tipsv2Model, Tipsv2Processor, Tipsv2Tokenizer

from model.manifest import MANIFEST_NAME, Manifest, ParityEntry, ScoreEntry, ZeroShot
from model.package import ModelPackage, open_package, write_manifest
from model.runtime.base import TEXT_FILE, VISION_FILE
from model.runtime.load import load_runtime
from training.export.card import render_card
from training.export.export_onnx import export_text, export_vision
from training.export.parity import check_parity

NEEDED_FILES = ("config.json", "tokenizer.json", "scores.json", "provenance.json", "card.md")
# Height and width of common pictures, relative to the shorter side.
ASPECTS = ((1, 1), (3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (16, 9))


def export_package(checkpoint: Path, output: Path, *, name: str) -> ModelPackage:
    """Write the complete package of a checkpoint.

    The folder appears under its name only when everything in it is written and the graphs compute
    what the model computes. An older package of that name is replaced.

    Args:
        checkpoint: See the module's docstring.
        output: The package's folder; absent, empty, or an older package.
        name: The model's name for clients, such as "tipserve-s14-scenes".

    Raises:
        ValueError: The checkpoint is incomplete or malformed, or `output` holds something else.
        ParityError: A graph differs from the model; nothing is written.
    """
    _check_checkpoint(checkpoint)
    _check_output(output)
    model = _load_model(checkpoint)
    draft = build_manifest(model, checkpoint, name=name)
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        _write_files(model, checkpoint, staging)
        parity = _measure_parity(model, staging, draft)
        text = (checkpoint / "card.md").read_text(encoding="utf-8")
        manifest = draft.model_copy(update={"parity": parity})
        (staging / "README.md").write_text(render_card(text, manifest), encoding="utf-8")
        write_manifest(staging, manifest)
        _make_readable(staging)
        _replace(output, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return open_package(output)


def _check_checkpoint(checkpoint: Path) -> None:
    missing = [name for name in NEEDED_FILES if not (checkpoint / name).is_file()]
    if missing:
        raise ValueError(
            f"{checkpoint} is no complete checkpoint, it lacks {', '.join(missing)}; "
            "finish the training and its evaluation first"
        )


def _check_output(output: Path) -> None:
    is_free = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not is_free and not (output / MANIFEST_NAME).is_file():
        raise ValueError(f"{output} exists and is no model package; choose another folder")


def _load_model(checkpoint: Path) -> Tipsv2Model:
    # With its report the call returns a pair, which its annotation does not say.
    loaded: Any = Tipsv2Model.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    model: Tipsv2Model = loaded[0]
    report: dict[str, Collection[str]] = loaded[1]
    if report["missing_keys"]:
        raise ValueError(
            f"{checkpoint} lacks weights, which would be random: {sorted(report['missing_keys'])}; "
            "save the whole Tipsv2Model"
        )
    model.eval()
    return model


def _write_files(model: Tipsv2Model, checkpoint: Path, folder: Path) -> None:
    """Weights, graphs and the processor, as `transformers` and the runtimes read them."""
    model.save_pretrained(folder)
    side = _native_size(model)
    processor = Tipsv2Processor(
        image_processor=Tipsv2ImageProcessor(size={"height": side, "width": side}),
        tokenizer=Tipsv2Tokenizer.from_pretrained(checkpoint),
    )
    processor.save_pretrained(folder)
    export_vision(model, folder / VISION_FILE)
    export_text(model, folder / TEXT_FILE)


def _measure_parity(model: Tipsv2Model, folder: Path, draft: Manifest) -> list[ParityEntry]:
    """Load the written graphs as the server will, by way of a first manifest."""
    runtime = load_runtime(write_manifest(folder, draft), runtime="onnx")
    try:
        return check_parity(model, runtime, draft)
    finally:
        runtime.close()


def build_manifest(model: Tipsv2Model, checkpoint: Path, *, name: str) -> Manifest:
    """Everything the manifest says before files are hashed and parity is measured.

    Raises:
        ValueError: `scores.json` or `provenance.json` is malformed.
    """
    vision = model.vision_model.config
    unit, native = _patch_size(model), _native_size(model)
    try:
        scores = TypeAdapter(list[ScoreEntry]).validate_json(
            (checkpoint / "scores.json").read_bytes()
        )
        provenance = TypeAdapter(dict[str, JsonValue]).validate_json(
            (checkpoint / "provenance.json").read_bytes()
        )
        return Manifest(
            name=name,
            variant=provenance.pop("variant", f"w{vision.hidden_size}d{vision.num_hidden_layers}"),
            embed_dim=vision.hidden_size,
            patch_size=unit,
            native_size=native,
            min_size=unit,
            max_size=4 * native,
            size_multiple=unit,
            shape_buckets=_shape_buckets(native, unit),
            max_text_tokens=model.text_model.config.max_position_embeddings,
            temperature=model.temperature.item(),
            outputs=["patches", "values", "cls1", "cls2", "text"],
            zero_shot=provenance.pop("zero_shot", ZeroShot()),
            scores=scores,
            licence=provenance.pop("licence", ""),
            provenance=provenance,
        )
    except ValidationError as error:
        raise ValueError(f"{checkpoint} has malformed scores or provenance: {error}") from error


def _patch_size(model: Tipsv2Model) -> int:
    patch_size: int = model.vision_model.embeddings.patch_embeddings.projection.stride[0]
    return patch_size


def _native_size(model: Tipsv2Model) -> int:
    """Side in pixels of the square whose grid has the position embeddings as they were learnt."""
    num_positions = model.vision_model.embeddings.position_embeddings.shape[1] - 1
    return math.isqrt(num_positions) * _patch_size(model)


def _shape_buckets(native: int, unit: int) -> list[tuple[int, int]]:
    """The native square and, with the same shorter side, the shapes of common pictures."""
    buckets = []
    for height, width in ASPECTS:
        scale = native / min(height, width) / unit
        buckets.append((round(height * scale) * unit, round(width * scale) * unit))
    return buckets


def _make_readable(folder: Path) -> None:
    """Let every user read the package: a server seldom runs as the user who trained."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _replace(output: Path, staging: Path) -> None:
    """Put the new folder in the old one's place, keeping the old until the new is there."""
    if not (output / MANIFEST_NAME).is_file():
        staging.rename(output)
        return
    retired = output.with_name(f".{output.name}.{os.getpid()}.retired")
    output.rename(retired)
    try:
        staging.rename(output)
    except OSError:
        retired.rename(output)
        raise
    shutil.rmtree(retired)
