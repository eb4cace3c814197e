"""Add reference outputs and vision graphs in fp16 or bf16 to a finished package.

All other files stay byte for byte. The graphs are made of the package's float32 graph, whose bytes
they read where those are their weights. So that a package without weights for torch can have them
too, its weights are read from its graphs.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import onnx_ir
import torch

from model.card import render_card
from model.cell_encoder import MODEL_TYPE, CellEncoder
from model.encoder import WEIGHTS_FILE, Encoder, load_encoder, saved_kind
from model.export.exact import read_weights
from model.export.half import to_half
from model.export.tracing import save_graph
from model.graphs import TEXT_FILE, VISION_FILE, DenseTask, HalfPrecision, graph_file
from model.manifest import CARD, MANIFEST_NAME
from model.package import ModelPackage, Progress, open_package, staged, write_manifest
from model.parity.gate import prove_package, run_reference
from model.parity.inputs import FloatArray
from model.parity.recorded import read_recorded, write_recorded
from model.parity.reference import recorded_reference
from model.runtime.load import load_runtime

PROVENANCE: Final = "added_graphs"
FROM_GRAPHS: Final = "read from the float32 graphs"


def add_graphs(
    package: ModelPackage,
    precisions: Sequence[HalfPrecision],
    output: Path,
    *,
    progress: Progress = lambda _: None,
) -> ModelPackage:
    """Write a package with reference outputs, and the vision graph in these precisions.

    Args:
        package: The finished package. Maps of its dense heads are recorded as ONNX Runtime computes
            them in float32, since a package has no weights of them for torch.
        precisions: Texts and dense heads are computed in float32 beside them.
        output: The new package's folder; absent, empty, or an older package, also this one.
        progress: Called with each step.

    Raises:
        EncoderError: There are no weights for torch, and none can be read from the graphs.
        ValueError: `output` is no package and not empty.
        ParityError: A graph differs from the model; nothing is written.
    """
    encoder, weights = read_encoder(package)
    with staged(output) as staging:
        shutil.copytree(package.path, staging, dirs_exist_ok=True)
        (staging / MANIFEST_NAME).unlink()
        files = set()
        for precision in precisions:
            progress(f"exporting the vision graph in {precision}")
            graph, float32 = onnx_ir.load(package.file(VISION_FILE)), staging / VISION_FILE
            to_half(graph, precision)
            files.add(graph_file("vision", precision))
            save_graph(graph, staging / graph_file("vision", precision), stored_in=float32)
        first = write_manifest(staging, package.manifest)
        progress("recording outputs of the model, for servers to compare with")
        _record(encoder, first)
        reference = run_reference(encoder, first, progress=progress)
        measured = prove_package(first, reference, progress=progress)
        kept = [entry for entry in package.manifest.parity if entry.file not in files]
        added = [entry for entry in measured if entry.file in files]
        provenance = {PROVENANCE: {"precisions": list(precisions), "weights": weights}}
        manifest = package.manifest.model_copy(
            update={
                "parity": [*kept, *added],
                "provenance": {**package.manifest.provenance, **provenance},
            }
        )
        card = (package.path / CARD).read_text(encoding="utf-8")
        (staging / CARD).write_text(render_card(card, manifest), encoding="utf-8")
        write_manifest(staging, manifest)
    return open_package(output)


def read_encoder(package: ModelPackage) -> tuple[Encoder, str]:
    """Read a package's encoder for torch; returns it, and where its weights are from.

    Raises:
        EncoderError: There are no weights for torch, and none can be read from the graphs.
        ValueError: The weights do not fit the encoder.
    """
    if WEIGHTS_FILE in package.manifest.files or saved_kind(package.path) != MODEL_TYPE:
        return load_encoder(package.path), WEIGHTS_FILE
    encoder = CellEncoder.without_weights(package.path)
    for file, module in ((VISION_FILE, encoder.vision), (TEXT_FILE, encoder.text)):
        weights = read_weights(onnx_ir.load(package.file(file)), module.state_dict())
        module.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    return encoder, FROM_GRAPHS


def _record(encoder: Encoder, package: ModelPackage) -> None:
    """Write reference outputs, unless the package has those of all its outputs."""
    with closing(load_runtime(package, runtime="onnx", precision="fp32", device="cpu")) as runtime:

        def maps(pixels_B3HW: FloatArray) -> Mapping[DenseTask, FloatArray]:
            return runtime.encode_images(pixels_B3HW, runtime.tasks, ()).maps

        earlier = read_recorded(package)
        if earlier is not None and earlier.tasks == set(runtime.tasks):
            return
        dense = maps if runtime.tasks else None
        reference, thumbnails = recorded_reference(encoder, package, dense=dense)
    name = f"{reference.name}; dense heads by ONNX Runtime" if dense else reference.name
    write_recorded(replace(reference, name=name), thumbnails, package.path)
