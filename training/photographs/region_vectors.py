"""`python -m training.photographs.region_vectors DATA PACKAGE FOLDER`: regions of a package anew.

The vectors of the names of labelled regions follow from the vision graph, which stays as it is: no
embedding of an image, dense head or head of a user changes. The text graph, and the recorded
outputs of texts, are written anew. FOLDER is one of `python -m training photographs`.

Legend: K known names, D width of a space, E width of MiniLM.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from model.cell_encoder import CellConfig, CellEncoder
from model.efficientnet_lite import Trunk
from model.encoder import CONFIG_FILE, WEIGHTS_FILE
from model.export.exact import STORED, round_weights, store_exactly
from model.export.graph_writer import trace_text
from model.export.tracing import save_graph
from model.graphs import graph_file
from model.manifest import RECORDED_FILE
from model.package import ModelPackage, open_package, write_manifest
from model.parity.recorded import write_recorded
from model.parity.reference import recorded_reference
from model.segmentation import l2_normalize
from training.data.folder import DataFolder
from training.photographs.encoder import (
    CellMoments,
    SplitMoments,
    known_groups,
    load_minilm,
    load_tokenizer,
    region_classes,
    unit_texts,
)
from training.photographs.heads import Moments, merged
from training.photographs.job import PHOTOGRAPHS, PhotographsJob
from training.photographs.regions import region_names
from training.photographs.trunk_features import Cells
from training.run_record import code_version

_PASSES = 4
# The key of a known name is its text's embedding, rounded to fp16.
_SAME = 0.999
_KERNELS = ("drawings.", "classes.")
_OF_TEXTS = ("classes", "labels", "text_embeddings")
Vectors = NDArray[np.float32]


def read_encoder(package: ModelPackage) -> CellEncoder:
    """The encoder that the float32 graphs of a package compute."""
    settings = json.loads(package.file(CONFIG_FILE).read_text(encoding="utf-8"))
    del settings["model_type"]
    encoder = CellEncoder(CellConfig(**settings), load_tokenizer())
    load_minilm(encoder.text.sentence)
    tables = {k: v for k, v in encoder.text.state_dict().items() if k.startswith(_KERNELS)}
    _read(package.file(graph_file("vision")), encoder.vision.state_dict())
    _read(package.file(graph_file("text")), tables)
    return encoder


def _read(graph: Path, weights: Mapping[str, Tensor]) -> None:
    """Copy weights of a graph into those of the same names."""
    stored = {one.name.removesuffix(STORED): one for one in onnx.load(graph).graph.initializer}
    for name, weight in weights.items():
        weight.copy_(torch.tensor(numpy_helper.to_array(stored[name])))


def with_regions(encoder: CellEncoder, moments: SplitMoments, regions: Cells) -> CellEncoder:
    """The same encoder with new vectors for the names of regions; new names are added.

    Args:
        encoder: As built by `build_encoder`.
        moments: Of cells of its trunk, of drawings and of regions.
        regions: The regions' cells.
    """
    names, groups = region_names(), known_groups(moments.names)
    drawn_KD = _first_space(encoder, moments.all())
    classes = region_classes(encoder.vision, regions)
    tables = {
        "drawings": merged(drawn_KD, [groups[name] for name in names]),
        "classes": l2_normalize(np.stack([classes[name] for name in names])),
    }
    weights = encoder.text.state_dict()
    for kernel, vectors_KD in tables.items():
        keys, values = f"{kernel}.keys.weight", f"{kernel}.values.weight"
        weights[keys], values_KD = _replaced(weights[keys], weights[values].T, names, vectors_KD)
        weights[values] = values_KD.T.contiguous()
    config = replace(
        encoder.config,
        num_drawing_names=len(weights["drawings.keys.weight"]),
        num_class_names=len(weights["classes.keys.weight"]),
    )
    changed = CellEncoder(config, load_tokenizer())
    changed.vision.load_state_dict(encoder.vision.state_dict())
    changed.text.load_state_dict(weights)
    return changed


@torch.inference_mode()
def _first_space(encoder: CellEncoder, moments: CellMoments) -> Vectors:
    """Unit vectors [K, D] of the mean cells of each name."""

    def means(sums: Moments) -> Tensor:
        means_KF = sums.sum_KF / np.maximum(sums.count_K[:, None], 1)
        return torch.from_numpy(means_KF.astype(np.float32))[None]

    described = encoder.vision.describe(means(moments.fine), means(moments.coarse))[0]
    vectors_KD: Vectors = described[:, : encoder.config.drawing_width].numpy()
    return vectors_KD


def _replaced(
    keys_KE: Tensor, values_KD: Tensor, names: Sequence[str], vectors_KD: Vectors
) -> tuple[Tensor, Tensor]:
    """Keys and values in which these names have these vectors."""
    own_KE, own_KD = torch.from_numpy(unit_texts(tuple(names))), torch.from_numpy(vectors_KD)
    cosine_K, place_K = (own_KE @ keys_KE.T).max(dim=1)
    is_known_K = cosine_K > _SAME
    values_KD = values_KD.clone()
    values_KD[place_K[is_known_K]] = own_KD[is_known_K]
    return (
        torch.cat([keys_KE, own_KE[~is_known_K]]),
        torch.cat([values_KD, own_KD[~is_known_K]]),
    )


def write_texts(encoder: CellEncoder, package: ModelPackage) -> None:
    """Write what depends on the text tower into a package; `encoder` is rounded as the graph is."""
    round_weights(encoder.text, "int8_tables")
    graph = trace_text(encoder.text)
    store_exactly(graph)
    save_graph(graph, package.path / graph_file("text"))
    encoder.save(package.path)
    (package.path / WEIGHTS_FILE).unlink()
    file = package.path / RECORDED_FILE
    before, metadata = _recorded(file)
    write_recorded(*recorded_reference(encoder, package, dense=lambda _: {}), package.path)
    after, _ = _recorded(file)
    save_file(before | {name: after[name] for name in _OF_TEXTS}, file, metadata=metadata)
    provenance = package.manifest.provenance | {
        "photographs": PHOTOGRAPHS,
        "region_vectors": code_version()["commit"] or "unknown",
    }
    write_manifest(package.path, package.manifest.model_copy(update={"provenance": provenance}))


def _recorded(path: Path) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def main(data: Path, source: str, folder: Path) -> None:
    """Compute the cells, and change the package."""
    torch.set_num_threads(1)
    package = open_package(source)
    encoder = read_encoder(package)
    trunk = encoder.vision.cells.trunk
    assert isinstance(trunk, Trunk)
    job = PhotographsJob(
        data=DataFolder(path=data),
        folder=folder,
        passes=_PASSES,
        tail_parts=9,
        num_scenes=0,
        card=folder,
    )
    moments, regions = job.moments(trunk, job.tuning())
    write_texts(with_regions(encoder, moments, regions), package)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
