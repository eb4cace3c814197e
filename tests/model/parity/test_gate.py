"""Graphs that differ from the model are refused."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from model.encoder import Tipsv2Encoder
from model.graphs import TEXT_FILE, VISION_FILE, DenseTask, Precision, graph_file
from model.manifest import FileEntry, ParityEntry, ParityLimits
from model.package import ModelPackage
from model.parity import gate
from model.parity.gate import plan_proofs, prove_package, require, run_reference
from model.parity.measure import ParityError, Reference, measure
from model.runtime.base import Runtime, VisionOutput
from model.runtime.choice import Machine, RuntimeChoice
from model.runtime.loaded_graphs import LoadedGraph
from model.runtime.machine import Hardware, InstalledLibraries
from tests.model.parity.conftest import Altered

FloatArray = NDArray[np.float32]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Change = Callable[[VisionOutput], VisionOutput]


def vision_run(precision: Precision = "fp32") -> LoadedGraph:
    return LoadedGraph("vision", VISION_FILE, precision)


def text_run(precision: Precision = "fp32") -> LoadedGraph:
    return LoadedGraph("text", TEXT_FILE, precision)


def patches_changed(change: Callable[[FloatArray, tuple[int, int]], FloatArray]) -> Change:
    """The same fault in patches and values."""
    return lambda output: replace(
        output,
        patches_BND=change(output.patches_BND, output.grid_hw),
        values_BND=change(output.values_BND, output.grid_hw),
    )


def transposed(patches_BND: FloatArray, grid_hw: tuple[int, int]) -> FloatArray:
    grid_BhwD = patches_BND.reshape(len(patches_BND), *grid_hw, -1)
    return np.ascontiguousarray(grid_BhwD.swapaxes(1, 2)).reshape(patches_BND.shape)


def one_patch(value: float) -> Change:
    """Replaces the last patch of the last image."""

    def change(patches_BND: FloatArray, _: tuple[int, int]) -> FloatArray:
        patches_BND = patches_BND.copy()
        patches_BND[-1, -1] = value
        return patches_BND

    return patches_changed(change)


def items_swapped(output: VisionOutput) -> VisionOutput:
    names = ("cls1_BD", "cls2_BD", "patches_BND", "values_BND")
    return replace(output, **{name: getattr(output, name)[::-1] for name in names})


# Each exceeds the limits of every precision.
FAULTS: dict[str, Change] = {
    "cls1 and cls2 swapped": lambda o: replace(o, cls1_BD=o.cls2_BD, cls2_BD=o.cls1_BD),
    "values instead of patches": lambda o: replace(o, patches_BND=o.values_BND),
    "grid transposed": patches_changed(transposed),
    "patches shifted by one": patches_changed(lambda patches, _: np.roll(patches, 1, axis=1)),
    "one patch lost": one_patch(1.0),
    "NaN in one patch": one_patch(float("nan")),
    "infinity in one patch": one_patch(float("inf")),
    "a batch's items swapped": items_swapped,
    "opposite sign": lambda o: replace(o, cls1_BD=-o.cls1_BD),
    "twice the scale": lambda o: replace(o, cls1_BD=2 * o.cls1_BD),
}


def test_equal_graphs_pass_on_sizes_of_both_orientations(
    reference: Reference, runtime: Runtime
) -> None:
    vision, text = (measure(reference, runtime, graph) for graph in (vision_run(), text_run()))
    require([vision, text])
    assert (vision.file, text.file) == (VISION_FILE, TEXT_FILE)
    for entry in (vision, text):
        assert (entry.runtime, entry.precision) == ("onnx", "fp32")
        assert entry.min_cosine_cls == pytest.approx(1, abs=1e-5)
        assert entry.mean_cosine_cls == pytest.approx(1, abs=1e-5)
        assert entry.mask_agreement == pytest.approx(1, abs=1e-4)
        assert entry.worst_size in entry.sizes
        assert ParityEntry.model_validate_json(entry.model_dump_json()) == entry
    assert {1, 2, 8} <= {batch for batch, *_ in vision.sizes}
    assert max(vision.sizes, key=lambda size: size[1])[1:] == (112, 112)
    oblong = {size for size in vision.sizes if size[1] != size[2]}
    assert any((batch, width, height) in oblong for batch, height, width in oblong)
    assert measure(reference, runtime, vision_run()) == vision


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_stopped_in_every_precision(
    reference: Reference, altered: Any, fault: str, precision: Precision
) -> None:
    altered.change_vision = FAULTS[fault]
    entry = measure(reference, altered, vision_run(precision))
    with pytest.raises(ParityError, match=r"vision_model\.onnx on altered.*Nothing was written"):
        require([entry])


@pytest.mark.parametrize("offset", [1e-3, float("nan")])
def test_an_offset_in_one_number_is_stopped_in_float32(
    reference: Reference, altered: Any, offset: float
) -> None:
    def change_text(embeddings_BD: FloatArray) -> FloatArray:
        embeddings_BD[-1, 0] += np.float32(offset)
        return embeddings_BD

    def change_vision(output: VisionOutput) -> VisionOutput:
        output.patches_BND[-1, -1, -1] += np.float32(offset)
        return output

    altered.change_text, altered.change_vision = change_text, change_vision
    for graph in (text_run(), vision_run()):
        entry = measure(reference, altered, graph)
        with pytest.raises(ParityError, match=r"_model\.onnx on altered in fp32.*at the size \("):
            require([entry])


def test_another_shape_and_a_failing_graph_are_stopped(reference: Reference, altered: Any) -> None:
    def refuse(_: FloatArray) -> FloatArray:
        raise RuntimeError("baked shape")

    altered.change_vision = lambda o: replace(o, patches_BND=o.patches_BND[:, 1:])
    with pytest.raises(ParityError, match=r"shape \[1, 15, 32\] instead of \[1, 16, 32\]"):
        measure(reference, altered, vision_run())
    altered.change_text = refuse
    with pytest.raises(ParityError, match=r"text_model\.onnx.*size \(1, \d\): baked shape"):
        measure(reference, altered, text_run())


DENSE: dict[DenseTask, FloatArray] = {
    "depth": np.linspace(0.5, 9, 64, dtype=np.float32).reshape(1, 8, 8),
    "normals": np.moveaxis(np.array([[[[0.0, 0.6, 0.8]] * 8] * 8], np.float32), -1, 1),
    "segmentation": np.random.default_rng(0).random((1, 5, 8, 8), dtype=np.float32),
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("task", DENSE)
def test_a_dense_head_is_judged_by_its_own_measure(
    tiny_encoder: Tipsv2Encoder, tiny_package: ModelPackage, task: DenseTask, precision: Precision
) -> None:
    def right(pixels_B3HW: FloatArray) -> FloatArray:
        return np.repeat(DENSE[task], len(pixels_B3HW), axis=0)

    reference = run_reference(tiny_encoder, tiny_package, dense=lambda x: {task: right(x)})
    runtime: Any = Altered(cast("Any", SimpleNamespace(estimate=lambda _, pixels: right(pixels))))
    for change, passes in (
        (lambda maps: maps, True),
        (lambda maps: maps[..., ::-1] * 1.2, task == "normals"),  # a map of one normal
        (lambda maps: maps[..., ::-1] - 1, False),
    ):
        runtime.change_maps = change
        run = LoadedGraph(task, "onnx/dense.onnx", precision)
        assert measure(reference, runtime, run).passed == passes


HAS_BF16 = Hardware(cpu_features=frozenset({"bf16"}))
BOTH = InstalledLibraries(onnx=frozenset({"cpu"}), openvino=True, torch=frozenset({"cpu"}))


def planned(package: ModelPackage, machine: Machine) -> list[tuple[str, str]]:
    proofs = plan_proofs(package.manifest, machine)
    return [(proof.choice.runtime, proof.choice.precision) for proof in proofs]


def with_graphs(package: ModelPackage, *precisions: Precision) -> ModelPackage:
    """Add graphs of the vision tower to a package's manifest."""
    added = FileEntry(sha256="0" * 64, size_bytes=1)
    files = {graph_file("vision", precision): added for precision in precisions}
    manifest = package.manifest.model_copy(update={"files": package.manifest.files | files})
    return replace(package, manifest=manifest)


def test_every_backend_is_compared_float32_first_and_each_graph_once(
    tiny_package: ModelPackage,
) -> None:
    assert planned(tiny_package, Machine(HAS_BF16, BOTH)) == [
        ("onnx", "fp32"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
    ]
    assert planned(tiny_package, Machine(Hardware(), BOTH))[-1] == ("openvino", "fp32")
    only_onnx = InstalledLibraries(onnx=frozenset({"cpu"}))
    assert planned(tiny_package, Machine(HAS_BF16, only_onnx)) == [("onnx", "fp32")]
    quantised = with_graphs(tiny_package, "int8", "fp16")
    expected = {("onnx", "fp16"), ("onnx", "int8"), ("openvino", "int8")}
    assert expected < set(planned(quantised, Machine(HAS_BF16, BOTH)))
    proofs = plan_proofs(with_graphs(tiny_package, "int8").manifest, Machine(HAS_BF16, BOTH))
    int8 = next(p for p in proofs if (p.choice.runtime, p.choice.precision) == ("onnx", "int8"))
    assert [graph.file for graph in int8.graphs] == ["onnx/vision_model_int8.onnx"]
    assert [p.choice.precision for p in proofs if p.is_hint] == ["bf16"]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[Precision]:
    """Precisions in which every graph fails, on a CPU with bf16; nothing is computed."""
    precisions: set[Precision] = set()

    def measure(_: Reference, runtime: Runtime, graph: LoadedGraph, **__: object) -> ParityEntry:
        return ParityEntry(
            file=graph.file,
            runtime=runtime.name,
            precision=graph.precision,
            reference="torch",
            sizes=[(1, 56, 56)],
            max_abs_diff=float(graph.precision in precisions),
            limits=ParityLimits(max_abs_diff=0.5),
        )

    def load(_: ModelPackage, choice: RuntimeChoice, *__: object) -> Any:
        return SimpleNamespace(name=choice.runtime, close=lambda: None)

    monkeypatch.setattr(gate, "measure", measure)
    monkeypatch.setattr(gate, "load_chosen", load)
    monkeypatch.setattr(gate, "this_hardware", lambda: HAS_BF16)
    return precisions


def test_a_failed_graph_stops_the_export_but_a_hint_and_one_that_may_fail_are_recorded(
    tiny_package: ModelPackage, failing: set[Precision]
) -> None:
    package, towers = with_graphs(tiny_package, "fp16"), SimpleNamespace(tasks=frozenset())
    reference = cast("Reference", towers)
    failing |= {"fp16", "bf16", "fp32"}
    with pytest.raises(ParityError, match=r"vision_model\.onnx on onnx in fp32.*is 1, .*Nothing"):
        prove_package(package, reference)
    failing.remove("fp32")
    with pytest.raises(ParityError, match="in fp16"):
        prove_package(package, reference)
    reported: list[str] = []
    may_fail: tuple[Precision, ...] = ("fp16",)
    entries = prove_package(package, reference, may_fail=may_fail, progress=reported.append)
    assert {entry.precision for entry in entries if not entry.passed} == {"fp16", "bf16"}
    assert [text for text in reported if text.startswith("not to be used: onnx/vision_model.")]
