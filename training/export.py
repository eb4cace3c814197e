"""Turns a training checkpoint into a model package, atomically.

A checkpoint is a folder that `Encoder.save` wrote (of a Tipsv2Model, `save_pretrained` with its
tokenizer), with `scores.json` (a list of score entries), `provenance.json` (an object with at least
`licence`; `variant` and `zero_shot` go into the manifest) and `card.md` (the model card's text).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from model.encoder import Encoder, load_encoder
from model.export.graph_writer import PackageContent, draft_manifest
from model.export.package_writer import write_package
from model.graphs import ExportPrecision
from model.manifest import Manifest, ScoreEntry
from model.package import ModelPackage, check_output

NEEDED_FILES = ("config.json", "tokenizer.json", "scores.json", "provenance.json", "card.md")


def export_package(
    checkpoint: Path,
    output: Path,
    *,
    name: str,
    is_graphs_only: bool = False,
    precisions: Sequence[ExportPrecision] = (),
    may_fail: Sequence[ExportPrecision] = (),
) -> ModelPackage:
    """Write the complete package of a checkpoint; see `model.export.package_writer`.

    Args:
        checkpoint: See the module's docstring.
        output: The package's folder; absent, empty, or an older package.
        name: The model's name for clients, such as "tipserve-s14-scenes".
        is_graphs_only: See `PackageContent`.
        precisions: Of additional graphs; fp32 is always written.
        may_fail: See `PackageContent`.

    Raises:
        ValueError: The checkpoint is incomplete or malformed, or `output` holds something else.
        ParityError: A graph differs from the model; nothing is written.
    """
    missing = [name for name in NEEDED_FILES if not (checkpoint / name).is_file()]
    if missing:
        raise ValueError(
            f"{checkpoint} is not a complete checkpoint: {', '.join(missing)} missing; run "
            "`python -m training evaluate --output` first, or, to serve a model without scores, "
            "give its folder to `python -m model convert`"
        )
    check_output(output)
    encoder = load_encoder(checkpoint)
    content = PackageContent(
        encoder=encoder,
        draft=build_manifest(encoder, checkpoint, name=name),
        card=(checkpoint / "card.md").read_text(encoding="utf-8"),
        is_graphs_only=is_graphs_only,
        precisions=tuple(precisions),
        may_fail=tuple(may_fail),
    )
    return write_package(content, output, is_thorough=True)


def build_manifest(encoder: Encoder, checkpoint: Path, *, name: str) -> Manifest:
    """The manifest before files are hashed and parity is measured.

    Raises:
        ValueError: `scores.json` or `provenance.json` is malformed.
    """
    try:
        scores = TypeAdapter(list[ScoreEntry]).validate_json(
            (checkpoint / "scores.json").read_bytes()
        )
        provenance = TypeAdapter(dict[str, JsonValue]).validate_json(
            (checkpoint / "provenance.json").read_bytes()
        )
        draft = draft_manifest(encoder, name=name)
        added: dict[str, Any] = {
            "variant": provenance.pop("variant", draft.variant),
            "licence": provenance.pop("licence", ""),
            "zero_shot": provenance.pop("zero_shot", draft.zero_shot.model_dump()),
            "scores": scores,
            "provenance": provenance,
        }
        return Manifest.model_validate(draft.model_dump() | added)
    except ValidationError as error:
        raise ValueError(f"{checkpoint} has malformed scores or provenance: {error}") from error
