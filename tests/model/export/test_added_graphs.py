"""Graphs and reference outputs are added to a finished package, whose other files stay."""

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch
from torch import Tensor, nn

from model.encoder import EncoderError
from model.export.added_graphs import FROM_GRAPHS, add_graphs, read_encoder
from model.export.added_heads import AddedHeads, add_heads
from model.export.exact import round_weights, store_exactly
from model.export.half import to_half
from model.export.tracing import save_graph, trace
from model.graphs import VISION_FILE, graph_file
from model.manifest import CARD, RECORDED_FILE
from model.onnx_files import check_graph
from model.package import ModelPackage, open_package, write_manifest
from model.parity.recorded import read_recorded
from model.parity.reference import reference_text, reference_vision
from model.runtime.load import load_runtime
from model.segmentation import l2_normalize
from tests.model.export.test_graph_writer import run_onnx

HALF_FILE = graph_file("vision", "fp16")
PIXELS = np.random.default_rng(0).random((2, 3, 56, 84), np.float32)


class Depth(nn.Module):
    """Depth from embeddings."""

    def forward(self, tap_cls: Tensor, tap_patches: Tensor) -> Tensor:
        sums = tap_patches[:, 0].sum(-1) + tap_cls[:, 0].sum(-1)[:, None, None]
        wide = nn.functional.interpolate(sums[:, None], scale_factor=8.0, mode="bilinear")
        return wide.sigmoid()[:, 0]


def without(package: ModelPackage, file: str, folder: Path) -> ModelPackage:
    """A copy of a package that lacks a file."""
    shutil.copytree(package.path, folder)
    (folder / file).unlink()
    return write_manifest(folder, package.manifest)


def test_a_graph_and_reference_outputs_are_added_and_all_else_stays(
    tiny_package: ModelPackage, tmp_path: Path
) -> None:
    plain = without(tiny_package, RECORDED_FILE, tmp_path / "plain")  # of an earlier version
    package = add_graphs(plain, ["fp16"], tmp_path / "extended")
    before, after = plain.manifest, package.manifest
    assert after.files.keys() == before.files.keys() | {HALF_FILE, RECORDED_FILE}
    assert {n for n, entry in before.files.items() if after.files[n] != entry} == {CARD}
    assert after.parity[: len(before.parity)] == before.parity
    assert {(e.file, e.runtime, e.passed) for e in after.parity[len(before.parity) :]} == {
        (HALF_FILE, "onnx", True)
    }
    added = {"precisions": ["fp16"], "weights": "model.safetensors"}
    assert after.provenance == {**before.provenance, "added_graphs": added}
    assert f"`{HALF_FILE}`" in package.file(CARD).read_text()
    outputs = []
    for precision in ("fp32", "fp16"):
        with closing(load_runtime(package, runtime="onnx", precision=precision)) as runtime:
            outputs.append(l2_normalize(runtime.encode_images(PIXELS).patches_BND))
    exact, rounded = outputs
    assert not np.array_equal(exact, rounded)
    assert (exact * rounded).sum(-1).min() > 0.999


def test_maps_of_added_heads_are_recorded(tiny_package: ModelPackage, tmp_path: Path) -> None:
    heads = AddedHeads(
        modules={"depth": Depth().eval()},
        scores=[],
        provenance={"depth": {"description": "of sums."}},
    )
    package = add_heads(tiny_package, heads, tmp_path / "heads")
    # Also in place of the package itself.
    again = add_graphs(package, [], package.path)
    reference = read_recorded(again)
    assert reference is not None
    assert reference.tasks == {"depth"}
    assert reference.name.endswith("; dense heads by ONNX Runtime")
    with closing(load_runtime(again, runtime="openvino", precision="fp32")) as runtime:
        for case in reference.vision:
            assert case.samples is not None
            found = case.samples.of_map(runtime.estimate("depth", case.given.pixels_B3HW))
            np.testing.assert_allclose(found, case.dense["depth"], rtol=1e-4, atol=1e-5)


class Unit(nn.Module):
    """A product, scaled to length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(64, 64, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x: Tensor = self.product(pixel_values * 2)
        unit: Tensor = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return unit


def test_weights_that_the_float32_graph_stores_in_fp16_are_read_from_its_file(
    tmp_path: Path,
) -> None:
    network = Unit().eval()
    round_weights(network, "fp16")
    rows = torch.rand(2, 3, 64)
    axes = {"pixel_values": {0: "batch", 1: "rows"}}
    graph = trace(network, {"pixel_values": rows}, outputs=["out"], axes=axes)
    store_exactly(graph)
    float32, half = tmp_path / "float32.onnx", tmp_path / "half.onnx"
    save_graph(graph, float32)
    again = onnx_ir.load(float32)
    to_half(again, "fp16")
    save_graph(again, half, stored_in=float32)
    assert check_graph(half, 10**6) == {"float32.onnx"}
    assert half.stat().st_size < 4_000 < 2 * 64 * 64 < float32.stat().st_size
    rows[0, 0] = 0  # of length 0: least lengths are no numbers in fp16
    (found,) = run_onnx(half, {"pixel_values": rows.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, network(rows).numpy(), rtol=0, atol=2e-3)


def test_a_package_without_weights_that_can_be_read_is_refused(
    tiny_package: ModelPackage, tmp_path: Path
) -> None:
    package = without(tiny_package, "model.safetensors", tmp_path / "package")
    with pytest.raises(EncoderError, match=r"has graphs only and no model\.safetensors"):
        add_graphs(package, ["fp16"], tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_the_bundled_models_reference_is_what_torch_computes_with_the_weights_of_its_graphs() -> (
    None
):
    package = open_package("bundled")
    encoder, source = read_encoder(package)
    assert source == FROM_GRAPHS
    reference = read_recorded(package)
    assert reference is not None
    assert reference.tasks == {"depth", "normals"}
    case, (text,) = reference.vision[0], reference.text
    towers, samples = encoder.reference, case.samples
    assert samples is not None
    found = reference_vision(towers, case.given.pixels_B3HW, package.manifest.patch_size)
    found = replace(found, values_BND=samples.of_patches(found.values_BND))
    for name in ("cls1_BD", "cls2_BD", "values_BND"):
        wanted = getattr(case.output, name)
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=0, atol=1e-5)
    texts_BD = reference_text(towers, text.given.token_ids_BL, text.given.mask_BL)
    np.testing.assert_allclose(texts_BD, text.output_BD, rtol=0, atol=1e-5)
    assert check_graph(package.file(HALF_FILE), 10**9) == {Path(VISION_FILE).name}
