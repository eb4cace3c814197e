"""Graphs and reference outputs are added to a finished package, whose other files stay."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
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
from model.manifest import CARD, MANIFEST_NAME, RECORDED_FILE
from model.onnx_files import external_files
from model.package import ModelPackage, open_package
from model.parity.recorded import read_recorded
from model.parity.reference import reference_text, reference_vision
from model.runtime.load import load_runtime
from model.segmentation import l2_normalize

HALF_FILE = graph_file("vision", "fp16")
PIXELS = np.random.default_rng(0).random((2, 3, 56, 84), np.float32)


class Depth(nn.Module):
    """Depth from embeddings."""

    def forward(self, tap_cls: Tensor, tap_patches: Tensor) -> Tensor:
        sums = tap_patches[:, 0].sum(-1) + tap_cls[:, 0].sum(-1)[:, None, None]
        wide = nn.functional.interpolate(sums[:, None], scale_factor=8.0, mode="bilinear")
        return wide.sigmoid()[:, 0]


@pytest.fixture(scope="module")
def plain(tiny_package: ModelPackage) -> ModelPackage:
    """As an earlier version wrote it, without reference outputs."""
    files = {n: e for n, e in tiny_package.manifest.files.items() if n != RECORDED_FILE}
    return replace(tiny_package, manifest=tiny_package.manifest.model_copy(update={"files": files}))


@pytest.fixture(scope="module")
def extended(plain: ModelPackage, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return add_graphs(plain, ["fp16"], tmp_path_factory.mktemp("extended") / "tiny")


def test_all_other_files_stay_byte_for_byte(
    tiny_package: ModelPackage, extended: ModelPackage
) -> None:
    before, after = tiny_package.manifest, extended.manifest
    assert after.files.keys() == before.files.keys() | {HALF_FILE}
    changed = {name for name, entry in before.files.items() if after.files[name] != entry}
    assert changed == {CARD}
    assert after.parity[: len(before.parity)] == before.parity
    assert {(e.file, e.runtime, e.passed) for e in after.parity[len(before.parity) :]} == {
        (HALF_FILE, "onnx", True)
    }
    added = {"precisions": ["fp16"], "weights": "model.safetensors"}
    assert after.provenance == {**before.provenance, "added_graphs": added}
    assert f"`{HALF_FILE}`" in extended.file(CARD).read_text()


def test_the_graph_computes_in_fp16(extended: ModelPackage) -> None:
    outputs = []
    for precision in ("fp32", "fp16"):
        with closing(load_runtime(extended, runtime="onnx", precision=precision)) as runtime:
            outputs.append(runtime.encode_images(PIXELS).patches_BND)
    exact, rounded = map(l2_normalize, outputs)
    assert not np.array_equal(exact, rounded)
    assert (exact * rounded).sum(-1).min() > 0.999


def test_maps_of_added_heads_are_recorded(tiny_package: ModelPackage, tmp_path: Path) -> None:
    heads = AddedHeads(
        modules={"depth": Depth().eval()},
        scores=[],
        provenance={"depth": {"description": "of sums."}},
    )
    package = add_heads(tiny_package, heads, tmp_path / "heads")
    earlier = read_recorded(package)
    assert earlier is not None
    assert earlier.tasks == set()
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
    inputs = {"pixel_values": torch.rand(2, 3, 64)}
    axes = {"pixel_values": {0: "batch", 1: "rows"}}
    graph = trace(network, inputs, outputs=["out"], axes=axes)
    store_exactly(graph)
    float32, half = tmp_path / "float32.onnx", tmp_path / "half.onnx"
    save_graph(graph, float32)
    again = onnx_ir.load(float32)
    to_half(again, "fp16")
    stored = [v for v in again.graph.initializers.values() if str(v.name).endswith("_stored")]
    assert [use.node.op_type for value in stored for use in value.uses()] == ["MatMul"]
    save_graph(again, half, stored_in=float32)
    assert external_files(half) == {"float32.onnx"}
    assert half.stat().st_size < 4_000 < 2 * 64 * 64 < float32.stat().st_size
    session = onnxruntime.InferenceSession(half, providers=["CPUExecutionProvider"])
    rows = inputs["pixel_values"].numpy()
    rows[0, 0] = 0  # of length 0: least lengths are no numbers in fp16
    (found,) = session.run(None, {"pixel_values": rows})
    with torch.no_grad():
        wanted = network(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3)


def test_a_package_without_weights_that_can_be_read_is_refused(
    tiny_package: ModelPackage, tmp_path: Path
) -> None:
    files = {n: e for n, e in tiny_package.manifest.files.items() if n != "model.safetensors"}
    for name in (*files, MANIFEST_NAME):
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / name).write_bytes((tiny_package.path / name).read_bytes())
    manifest = tiny_package.manifest.model_copy(update={"files": files})
    package = replace(tiny_package, path=tmp_path / "package", manifest=manifest)
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
    for name in ("cls1_BD", "cls2_BD"):
        wanted = getattr(case.output, name)
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(found.values_BND, samples.rows_BS[:, :, None], axis=1),
        case.output.values_BND,
        rtol=0,
        atol=1e-5,
    )
    texts_BD = reference_text(towers, text.given.token_ids_BL, text.given.mask_BL)
    np.testing.assert_allclose(texts_BD, text.output_BD, rtol=0, atol=1e-5)
    assert external_files(package.file(HALF_FILE)) == {Path(VISION_FILE).name}
