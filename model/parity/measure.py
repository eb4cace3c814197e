"""Outputs that runtimes are compared with, the comparison, and its limits; without torch.

Shapes: B batch, N patches, L tokens, D embedding width, K classes, H W pixels.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.graphs import DenseTask, Part, Precision
from model.manifest import ParityEntry, ParityLimits
from model.parity.distance import (
    Agreement,
    Distance,
    FloatArray,
    Mean,
    ParityError,
    ReferenceMask,
    depth_errors,
    mask,
    normal_angles,
)
from model.parity.inputs import TextInput, VisionInput
from model.runtime.base import Runtime, VisionOutput
from model.runtime.loaded_graphs import LoadedGraph
from model.segmentation import average_groups

Output = TypeVar("Output")
# Measured by this gate on a CPU with AMX: the bundled student (trained), and a B/14 (random weights
# at the scales of a trained model). The limits of quantised graphs still catch the faults of
# `tests/model/parity/test_gate.py`.
LIMITS: Final[dict[Precision, ParityLimits]] = {
    # Only the order of sums differs. Measured: at most 1.7e-5 of an output's scale, also on noise,
    # and 99.99 % of the pixels; six times that is more than rounding.
    "fp32": ParityLimits(max_relative_diff=1e-4, min_mask_agreement=0.999),
    # 8 bits of mantissa. The share of pixels decides, as bf16 is chosen with AMX; pixels that
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Places of each image whose outputs were recorded.

    Attributes:
        rows_BS: Indices of patches.
        points_BP: Indices of pixels of a flattened dense map.
    """

    rows_BS: NDArray[np.int64]
    points_BP: NDArray[np.int64]

    def of_patches(self, patches_BND: FloatArray) -> FloatArray:
        """The recorded patches [B, S, D]."""
        return np.take_along_axis(patches_BND, self.rows_BS[:, :, None], axis=1)

    def of_map(self, maps: FloatArray) -> FloatArray:
        """The recorded pixels of maps [B, ..., H', W']: [B, ..., P]."""
        flat = maps.reshape(*maps.shape[:-2], -1)
        axes = (len(flat), *[1] * (flat.ndim - 2), -1)
        return np.take_along_axis(flat, self.points_BP.reshape(axes), axis=-1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisionCase:
    """Images and the model's outputs; masks and dense maps of real images only.

    With `samples` the patches and maps are only those of these places.
    """

    given: VisionInput
    output: VisionOutput
    masks: tuple[ReferenceMask, ...]
    dense: Mapping[DenseTask, FloatArray] = field(default_factory=dict)
    samples: Samples | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextCase:
    """Texts and their embeddings."""

    given: TextInput
    output_BD: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassPrompts:
    """The prompts of all classes; `sizes` is the number of prompts of each class."""

    given: TextInput
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """Everything that exports are compared with.

    Attributes:
        name: What computed it, for the manifest.
        features: Patch features to segment with: "values" or "patches".
        prompts: Prompts of the classes; without them texts are not judged by masks.
        classes_KD: Embeddings of the classes.
        cpu_precision: As in the manifest.
    """

    name: str
    features: str
    cpu_precision: Precision | None
    prompts: ClassPrompts | None
    classes_KD: FloatArray
    vision: tuple[VisionCase, ...]
    text: tuple[TextCase, ...]

    @property
    def tasks(self) -> set[DenseTask]:
        """The dense heads that it has maps of."""
        return {task for case in self.vision for task in case.dense}


def segmenting_features(output: VisionOutput, features: str) -> FloatArray:
    """The patch features [B, N, D] to segment with: "values" or "patches"."""
    return output.values_BND if features == "values" else output.patches_BND


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
    reference: Reference,
    runtime: Runtime,
    graphs: Iterable[LoadedGraph],
    *,
    rounding: Precision | None = None,
) -> list[ParityEntry]:
    """Measure how far a runtime's outputs are from the model's; see `ParityEntry.passed`.

    Args:
        reference: Inputs and outputs of the same model in torch.
        runtime: Has the graphs loaded.
        graphs: Graphs to measure.
        rounding: Precision whose limits apply; None for that of each graph.

    Raises:
        ParityError: An output has a wrong shape, or a graph fails on an input.
    """
    entries = []
    for graph in graphs:
        bounds = limits(graph.part, rounding or graph.precision, reference.cpu_precision)
        if graph.part == "text" and reference.prompts is None:
            bounds = bounds.model_copy(update={"min_mask_agreement": None})
        entries.append(_measure_graph(reference, runtime, graph, bounds))
    return entries


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


def _measure_graph(
    reference: Reference, runtime: Runtime, graph: LoadedGraph, bounds: ParityLimits
) -> ParityEntry:
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
        limits=bounds,
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
            for ours, theirs in zip(
                _arrays(exported, case.samples), _arrays(case.output), strict=True
            )
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
    if prompts is None:
        return measured
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
        if case.samples is not None:
            ours = case.samples.of_map(ours)
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


def _arrays(output: VisionOutput, samples: Samples | None = None) -> list[FloatArray]:
    patches = [output.patches_BND, output.values_BND]
    if samples is not None:
        patches = [samples.of_patches(array) for array in patches]
    return [output.cls1_BD, output.cls2_BD, *patches]


def _run(
    graph: LoadedGraph, size: tuple[int, ...], call: Callable[..., Output], *inputs: object
) -> Output:
    try:
        return call(*inputs)
    except Exception as error:
        raise ParityError(
            f"{graph.file} in {graph.precision} cannot run an input of the size {size}: {error}"
        ) from error
