"""Compare graphs with the model, and refuse a package whose graphs differ.

Shapes: B batch, N patches, D embedding width, K classes, H W pixels.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import numpy as np
from torch import nn

from model.encoder import Encoder
from model.graphs import DenseTask, Part, Precision, graph_file
from model.manifest import Manifest, ParityEntry, ParityLimits
from model.package import ModelPackage, Progress
from model.parity.distance import (
    Agreement,
    Distance,
    FloatArray,
    Mean,
    ParityError,
    depth_errors,
    mask,
    normal_angles,
)
from model.parity.inputs import BUDGET_GFLOP
from model.parity.reference import (
    DenseReference,
    Reference,
    VisionCase,
    build_reference,
    head_reference,
    segmenting_features,
)
from model.runtime.base import Runtime, VisionOutput
from model.runtime.choice import BACKENDS, Machine, RuntimeChoice, unavailable_reason
from model.runtime.graph_runtime import GraphRuntime
from model.runtime.load import load_chosen
from model.runtime.loaded_graphs import TOWERS, LoadedGraph, loaded_graphs
from model.runtime.machine import installed_libraries, this_hardware
from model.segmentation import average_groups

# Measured by this gate on a CPU with AMX: the bundled student (trained), and a B/14 (random weights
# at the scales of a trained model). The limits of quantised graphs still catch the faults of
# `tests/model/parity/test_gate.py`.
LIMITS: Final[dict[Precision, ParityLimits]] = {
    # Only the order of sums differs. Measured: at most 1.7e-5 of an output's scale, also on noise,
    # and 99.99 % of the pixels; six times that is more than rounding.
    "fp32": ParityLimits(max_relative_diff=1e-4, min_mask_agreement=0.999),
    # 8 bits of mantissa. The share of pixels decides, as bf16 is chosen by default; pixels that
    # change lie where two classes are equally near. Measured: the student keeps 99.57 %. Cosines
    # separate faults from rounding: at worst 0.9997 for the student; for twelve blocks of random
    # weights, which amplify errors, 0.9948, and 0.9998 in the mean.
    "bf16": ParityLimits(
        max_length_error=0.05, min_cosine=0.99, min_mean_cosine=0.9995, min_mask_agreement=0.995
    ),
    # 11 bits of mantissa: an eighth of the error of bf16. With OpenVINO's hint the student had a
    # cosine of 0.99995 at worst, and kept 99.89 % of the pixels.
    "fp16": ParityLimits(
        max_length_error=0.01, min_cosine=0.999, min_mean_cosine=0.9999, min_mask_agreement=0.998
    ),
    # Swapped outputs or items have cosines below these; with more than one changed pixel in twenty,
    # the masks are those of another model.
    "int8": ParityLimits(
        max_length_error=0.1, min_cosine=0.97, min_mean_cosine=0.995, min_mask_agreement=0.95
    ),
    "int8_weights": ParityLimits(
        max_length_error=0.1, min_cosine=0.97, min_mean_cosine=0.995, min_mask_agreement=0.95
    ),
}
# A package that names int8 for CPUs, a network of convolutions. Two trunks of EfficientNet-Lite0
# with weights of 7 and 8 bits had cosines of 0.91 at worst and 0.984 and 0.988 in the mean, lengths
# 0.22 off at worst, and equal scores. 92.8 and 90.0 % of the pixels kept their class; with more
# exact weights (0.95, 0.993) it was still 92.3 %, as many pixels there lie between two classes.
NAMED_INT8: Final = ParityLimits(
    max_length_error=0.3, min_cosine=0.88, min_mean_cosine=0.98, min_mask_agreement=0.87
)
# Dense heads: relative error of depth, degrees between normals, share of pixels of the same class.
# Chosen for the use of such maps; no released heads could be measured here.
_DENSE: Final[dict[Precision, tuple[float, float, float]]] = {
    "fp32": (1e-4, 0.01, 0.999),
    "bf16": (0.02, 1.0, 0.99),
    "fp16": (0.005, 0.2, 0.995),
    "int8": (0.05, 3.0, 0.95),
    "int8_weights": (0.05, 3.0, 0.95),
}


# ONNX Runtime first: it rounds nothing, so its differences are faults of the graph itself. torch is
# the reference, and packages are not written on GPUs.
RUNTIMES: Final = ("onnx", "openvino")
Output = TypeVar("Output")


@dataclass(frozen=True, slots=True)
class Proof:
    """A backend, a precision, and the graphs to compare."""

    choice: RuntimeChoice
    graphs: tuple[LoadedGraph, ...]

    @property
    def is_hint(self) -> bool:
        """Whether the runtime computes float32 graphs in another precision.

        Failures are then only recorded: such a backend is not chosen by default.
        """
        return self.choice.precision != "fp32" and all(
            graph.file == graph_file(graph.part) for graph in self.graphs
        )


def prove_package(
    encoder: Encoder,
    package: ModelPackage,
    *,
    dense: DenseReference | None = None,
    is_thorough: bool = False,
    progress: Progress = lambda _: None,
) -> list[ParityEntry]:
    """Compare a package's graphs with its model, on every CPU backend of this machine.

    Args:
        encoder: In float32 and evaluation mode.
        package: Has the graphs; its earlier parity entries are ignored.
        dense: The package's heads in torch; without them no head is measured.
        is_thorough: Measure on all sizes, whatever they cost.
        progress: Called with each step.

    Returns:
        An entry for each graph and backend. Entries of hinted precisions may have failed, and
        entries of dense heads in less than float32, which are then served in float32.

    Raises:
        ParityError: A graph exceeds its limits, or no runtime is installed.
    """
    package, proofs = _planned(package)
    progress("running the model in torch, as the reference")
    budget_gflop = math.inf if is_thorough else BUDGET_GFLOP
    reference = build_reference(encoder, package, dense=dense, budget_gflop=budget_gflop)
    return _prove(package, proofs, reference, progress=progress, parts=TOWERS | reference.tasks)


def prove_heads(
    package: ModelPackage,
    heads: Mapping[DenseTask, nn.Module],
    progress: Progress = lambda _: None,
) -> list[ParityEntry]:
    """Compare the graphs of heads that read embeddings with torch, on every CPU backend.

    Args:
        package: Its towers are not compared; torch reads the embeddings of its first runtime.
        heads: In float32 and evaluation mode.
        progress: Called with each step.

    Raises:
        ParityError: A graph exceeds its limits, or no runtime is installed.
    """
    package, proofs = _planned(package)
    progress("running the heads in torch, as the reference")
    with closing(load_chosen(package, proofs[0].choice, num_threads=_num_threads())) as runtime:
        reference = head_reference(package, runtime, heads)
    return _prove(package, proofs, reference, progress=progress, parts=reference.tasks)


def _planned(package: ModelPackage) -> tuple[ModelPackage, list[Proof]]:
    """The package without earlier entries, and what to compare."""
    unproven = package.manifest.model_copy(update={"parity": []})
    proofs = plan_proofs(unproven, Machine(this_hardware(), installed_libraries()))
    if not proofs:
        raise ParityError(
            "no runtime is installed that can run the graphs, so they cannot be compared with the "
            "model: pip install 'tipserve[cpu]'"
        )
    return replace(package, manifest=unproven), proofs


def _num_threads() -> int:
    return len(os.sched_getaffinity(0))


def _prove(
    package: ModelPackage,
    proofs: Sequence[Proof],
    reference: Reference,
    *,
    parts: Set[Part],
    progress: Progress,
) -> list[ParityEntry]:
    entries: list[ParityEntry] = []
    for proof in proofs:
        choice = proof.choice
        progress(f"comparing {choice.runtime} in {choice.precision}")
        graphs = [graph for graph in proof.graphs if graph.part in parts]
        measured: list[ParityEntry] = []
        with closing(load_chosen(package, choice, num_threads=_num_threads())) as runtime:
            for graph in graphs:
                measured += measure(reference, runtime, [graph])
                # Heads read the vision graph.
                if isinstance(runtime, GraphRuntime) and graph.part != "vision":
                    runtime.free(graph.part)
        if not proof.is_hint:
            require(
                [
                    entry
                    for entry, graph in zip(measured, graphs, strict=True)
                    if graph.part in TOWERS or graph.precision == "fp32"
                ]
            )
        for entry in measured:
            if not entry.passed:
                progress(f"not to be used: {describe(entry)}")
        entries += measured
    return entries


def plan_proofs(manifest: Manifest, machine: Machine) -> list[Proof]:
    """List what to compare: every CPU backend, float32 first, each of its graphs once."""
    proofs = []
    backends = [
        backend
        for name in RUNTIMES
        for backend in BACKENDS
        if (backend.runtime, backend.device) == (name, "cpu")
    ]
    for backend in backends:
        seen: set[LoadedGraph] = set()
        for precision in sorted(backend.precisions, key=lambda name: name != "fp32"):
            if unavailable_reason(backend, precision, manifest, machine) is not None:
                continue
            loaded = loaded_graphs(manifest, backend.runtime, precision)
            choice = RuntimeChoice(
                runtime=backend.runtime,
                precision=precision,
                device=backend.device,
                provider=backend.provider,
                reason="to be compared with the model",
            )
            proofs.append(Proof(choice, tuple(graph for graph in loaded if graph not in seen)))
            seen.update(loaded)
    return proofs


@dataclass(slots=True)
class Measured:
    """Differences of one graph from the model; values that do not apply stay None."""

    sizes: list[tuple[int, ...]] = field(default_factory=list)
    distance: Distance = field(default_factory=Distance)
    agreement: Agreement = field(default_factory=Agreement)
    depth: Mean = field(default_factory=Mean)
    angles: Mean = field(default_factory=Mean)

    def add_map(self, task: DenseTask, exported: FloatArray, reference: FloatArray) -> None:
        """Compare finite dense maps of one shape."""
        if task == "depth":
            self.depth.add(depth_errors(exported, reference))
        elif task == "normals":
            self.angles.add(normal_angles(exported, reference))
        else:
            same_BHW = exported.argmax(axis=1) == reference.argmax(axis=1)
            self.agreement.pixels += same_BHW.size
            self.agreement.same += int(same_BHW.sum())


def measure(
    reference: Reference, runtime: Runtime, graphs: Iterable[LoadedGraph]
) -> list[ParityEntry]:
    """Measure how far a runtime's outputs are from the model's; see `ParityEntry.passed`.

    Args:
        reference: Inputs and outputs of the same model in torch.
        runtime: Has the graphs loaded.
        graphs: Graphs to measure.

    Raises:
        ParityError: An output has a wrong shape, or a graph fails on an input.
    """
    return [_measure_graph(reference, runtime, graph) for graph in graphs]


def require(entries: Sequence[ParityEntry]) -> None:
    """Check that all graphs are within their limits.

    Raises:
        ParityError: A graph exceeds a limit.
    """
    for entry in entries:
        if not entry.passed:
            raise ParityError(
                f"{describe(entry)}. Nothing was written: leave this precision out, or fix the "
                "export; look for weights that overflow, and for layers that quantisation harms"
            )


def describe(entry: ParityEntry) -> str:
    """Describe a failed measurement."""
    return (
        f"{entry.file} on {entry.runtime} in {entry.precision} differs from {entry.reference}: "
        f"{'; '.join(entry.failures)}; worst at the size {entry.worst_size} of {entry.sizes}"
    )


def limits(part: Part, precision: Precision, named: Precision | None = None) -> ParityLimits:
    """Return the limits of a graph in a precision; `named` is the manifest's `cpu_precision`."""
    if part in {"vision", "text"}:
        is_named_int8 = part == "vision" and precision == named == "int8"
        return NAMED_INT8 if is_named_int8 else LIMITS[precision]
    depth_error, degrees, agreement = _DENSE[precision]
    dense: dict[DenseTask, ParityLimits] = {
        "depth": ParityLimits(max_depth_error=depth_error),
        "normals": ParityLimits(max_normals_degrees=degrees),
        "segmentation": ParityLimits(min_mask_agreement=agreement),
    }
    return next(its for task, its in dense.items() if task == part)


def _measure_graph(reference: Reference, runtime: Runtime, graph: LoadedGraph) -> ParityEntry:
    if graph.part == "vision":
        measured = _measure_vision(reference, runtime, graph)
    elif graph.part == "text":
        measured = _measure_text(reference, runtime, graph)
    else:
        measured = _measure_dense(reference, runtime, graph, graph.part)
    distance = measured.distance
    return ParityEntry(
        file=graph.file,
        runtime=runtime.name,
        precision=graph.precision,
        reference=reference.name,
        sizes=measured.sizes,
        worst_size=distance.worst_size,
        is_finite=distance.is_finite,
        max_abs_diff=distance.max_abs_diff,
        max_relative_diff=distance.max_relative_diff,
        max_length_error=distance.max_length_error,
        min_cosine_cls=distance.cls.lowest,
        mean_cosine_cls=distance.cls.mean,
        min_cosine_patches=distance.patches.lowest,
        mean_cosine_patches=distance.patches.mean,
        mask_agreement=measured.agreement.share,
        clear_mask_agreement=measured.agreement.clear_share,
        depth_error=measured.depth.value,
        normals_degrees=measured.angles.value,
        limits=limits(graph.part, graph.precision, reference.cpu_precision),
    )


def _measure_vision(reference: Reference, runtime: Runtime, graph: LoadedGraph) -> Measured:
    measured = Measured()
    for case in reference.vision:
        if not _judges(case.given.is_real, graph):
            continue
        measured.sizes.append(case.given.size)
        exported = _run(graph, case.given.size, runtime.encode_images, case.given.pixels_B3HW)
        are_finite = [
            measured.distance.add_embeddings(ours, theirs, case.given.size)
            for ours, theirs in zip(_arrays(exported), _arrays(case.output), strict=True)
        ]
        if all(are_finite):
            features_BND = segmenting_features(exported, reference.features)
            _count_masks(measured.agreement, case, features_BND, reference.classes_KD)
    return measured


def _measure_text(reference: Reference, runtime: Runtime, graph: LoadedGraph) -> Measured:
    measured = Measured()
    for case in reference.text:
        if not _judges(case.given.is_real, graph):
            continue
        shape = case.given.token_ids_BL.shape
        measured.sizes.append(shape)
        exported_BD = _run(
            graph, shape, runtime.encode_texts, case.given.token_ids_BL, case.given.mask_BL
        )
        measured.distance.add_embeddings(exported_BD, case.output_BD, shape)
    prompts = reference.prompts
    given = prompts.given
    shape = given.token_ids_BL.shape
    prompts_PD = _run(graph, shape, runtime.encode_texts, given.token_ids_BL, given.mask_BL)
    if np.isfinite(prompts_PD).all():
        classes_KD = average_groups(prompts_PD, prompts.sizes)
        for seen in reference.vision:
            features_BND = segmenting_features(seen.output, reference.features)
            _count_masks(measured.agreement, seen, features_BND, classes_KD)
    return measured


def _measure_dense(
    reference: Reference, runtime: Runtime, graph: LoadedGraph, task: DenseTask
) -> Measured:
    measured = Measured()
    for case in reference.vision:
        if task not in case.dense:
            continue
        measured.sizes.append(case.given.size)
        theirs = case.dense[task]
        ours = _run(graph, case.given.size, runtime.estimate, task, case.given.pixels_B3HW)
        if measured.distance.add(ours, theirs, case.given.size):
            measured.add_map(task, ours, theirs)
    return measured


def _judges(is_real: bool, graph: LoadedGraph) -> bool:
    """Noise is compared in float32 only."""
    return is_real or graph.precision == "fp32"


def _count_masks(
    agreement: Agreement, case: VisionCase, features_BND: FloatArray, classes_KD: FloatArray
) -> None:
    """Segment each real image of a case with these patches and these classes."""
    for item_ND, expected in zip(features_BND, case.masks, strict=False):
        size_hw = expected.labels_HW.shape
        agreement.add(mask(item_ND, classes_KD, case.output.grid_hw, size_hw), expected)


def _arrays(output: VisionOutput) -> list[FloatArray]:
    return [output.cls1_BD, output.cls2_BD, output.patches_BND, output.values_BND]


def _run(
    graph: LoadedGraph, size: tuple[int, ...], call: Callable[..., Output], *inputs: object
) -> Output:
    try:
        return call(*inputs)
    except Exception as error:
        raise ParityError(
            f"{graph.file} in {graph.precision} cannot run an input of the size {size}: {error}"
        ) from error
