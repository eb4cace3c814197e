"""What is run to prove a package, and what happens to what fails."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from transformers import Tipsv2Model

from model.graphs import Precision, graph_file
from model.manifest import FileEntry, ParityEntry, ParityLimits
from model.package import ModelPackage
from model.parity import proof
from model.parity.distance import ParityError
from model.parity.proof import plan_proofs, prove_package
from model.parity.reference import Reference
from model.runtime.base import Runtime
from model.runtime.hardware import Hardware
from model.runtime.libraries import Libraries
from model.runtime.loaded_graphs import LoadedGraph
from model.runtime.ways import Machine

HAS_BF16 = Hardware(cpu_features=frozenset({"bf16"}))
BOTH = Libraries(onnx=frozenset({"cpu"}), openvino=True, torch=frozenset({"cpu"}))


def planned(package: ModelPackage, machine: Machine) -> list[tuple[str, str]]:
    proofs = plan_proofs(package.manifest, machine)
    return [(proof.choice.runtime, proof.choice.precision) for proof in proofs]


def with_graphs(package: ModelPackage, *precisions: Precision) -> ModelPackage:
    """As if the vision tower were there in these precisions too."""
    added = FileEntry(sha256="0" * 64, size_bytes=1)
    files = {graph_file("vision", precision): added for precision in precisions}
    manifest = package.manifest.model_copy(update={"files": package.manifest.files | files})
    return replace(package, manifest=manifest)


def test_every_runtime_and_precision_of_this_machine_is_tried_float32_first(
    tiny_package: ModelPackage,
) -> None:
    assert planned(tiny_package, Machine(HAS_BF16, BOTH)) == [
        ("onnx", "fp32"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
    ]
    assert planned(tiny_package, Machine(Hardware(), BOTH))[-1] == ("openvino", "fp32")
    only_onnx = Libraries(onnx=frozenset({"cpu"}))
    assert planned(tiny_package, Machine(HAS_BF16, only_onnx)) == [("onnx", "fp32")]
    quantised = with_graphs(tiny_package, "int8", "fp16")
    assert {("onnx", "fp16"), ("onnx", "int8"), ("openvino", "int8")} < set(
        planned(quantised, Machine(HAS_BF16, BOTH))
    )


def test_a_graph_is_measured_once_where_several_precisions_load_it(
    tiny_package: ModelPackage,
) -> None:
    proofs = plan_proofs(with_graphs(tiny_package, "int8").manifest, Machine(HAS_BF16, BOTH))
    int8 = next(p for p in proofs if (p.choice.runtime, p.choice.precision) == ("onnx", "int8"))
    assert [graph.file for graph in int8.graphs] == ["onnx/vision_model_int8.onnx"]
    assert not int8.is_hint
    assert [p.choice.precision for p in proofs if p.is_hint] == ["bf16"]


def test_without_a_runtime_nothing_counts_as_proven(
    tiny_package: ModelPackage, tiny_model: Tipsv2Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_torch = Libraries(torch=frozenset({"cpu"}))
    monkeypatch.setattr(proof, "installed_libraries", lambda: only_torch)
    with pytest.raises(ParityError, match=r"no runtime is installed.*tipserve\[cpu\]"):
        prove_package(tiny_model, tiny_package)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[Precision]:
    """Precisions in which every graph fails; nothing is computed."""
    precisions: set[Precision] = set()

    def measure(_: Reference, runtime: Runtime, graphs: Iterable[LoadedGraph]) -> list[ParityEntry]:
        return [
            ParityEntry(
                file=graph.file,
                runtime=runtime.name,
                precision=graph.precision,
                reference="torch",
                sizes=[(1, 56, 56)],
                max_abs_diff=1.0 if graph.precision in precisions else 0.0,
                limits=ParityLimits(max_abs_diff=0.5),
            )
            for graph in graphs
        ]

    def no_reference(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(proof, "measure", measure)
    monkeypatch.setattr(proof, "build_reference", no_reference)
    return precisions


def test_a_graph_that_fails_stops_everything(
    tiny_model: Tipsv2Model, tiny_package: ModelPackage, failing: set[Precision]
) -> None:
    failing.add("fp32")
    with pytest.raises(ParityError, match=r"vision_model\.onnx on onnx in fp32.*is 1, .*Nothing"):
        prove_package(tiny_model, tiny_package)


def test_a_hint_that_fails_is_written_down_and_told(
    tiny_model: Tipsv2Model,
    tiny_package: ModelPackage,
    failing: set[Precision],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proof, "this_hardware", lambda: HAS_BF16)
    monkeypatch.setattr(proof, "load_chosen", lambda _, choice, **__: _Named(choice.runtime))
    failing.add("bf16")
    told: list[str] = []
    entries = prove_package(tiny_model, tiny_package, progress=told.append)
    assert {entry.precision for entry in entries if not entry.passed} == {"bf16"}
    assert [text for text in told if text.startswith("not to be used: onnx/vision_model.onnx on")]


class _Named:
    """Enough of a runtime where nothing is computed."""

    tasks = ()

    def __init__(self, name: str) -> None:
        self.name = name

    def close(self) -> None:
        pass
