"""The gate of every export: a graph, run in one way, must say what the model says.

Shapes: B batch, N patches, D embedding width, K classes, H W pixels.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from model.graphs import DenseTask
from model.manifest import ParityEntry
from model.parity.distance import (
    Distance,
    FloatArray,
    Mean,
    ParityError,
    depth_errors,
    normal_angles,
)
from model.parity.limits import limits
from model.parity.masks import Agreement, mask
from model.parity.reference import Reference, VisionCase, segmenting_features
from model.runtime.base import Runtime, VisionOutput
from model.runtime.loaded_graphs import LoadedGraph
from model.segmentation import average_groups

Output = TypeVar("Output")


@dataclass(slots=True)
class Measured:
    """What was seen of one graph; what does not apply to it stays without a number."""

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
    """How far a runtime's answers are from the model's; see `ParityEntry.passed`.

    Args:
        reference: Of the same model.
        runtime: Loaded with the graphs.
        graphs: What of it to measure.

    Raises:
        ParityError: An output has another shape, or a graph refuses an input.
    """
    return [_measure_graph(reference, runtime, graph) for graph in graphs]


def require(entries: Sequence[ParityEntry]) -> None:
    """Refuse graphs that do not keep their limits.

    Raises:
        ParityError: With what to do about it.
    """
    for entry in entries:
        if not entry.passed:
            raise ParityError(
                f"{describe(entry)}. Nothing was written: leave this precision out, or mend the "
                "export; weights that overflow and layers that quantisation harms are what to "
                "look for"
            )


def describe(entry: ParityEntry) -> str:
    """A sentence about one that failed."""
    return (
        f"{entry.file} on {entry.runtime} in {entry.precision} differs from {entry.reference}: "
        f"{'; '.join(entry.failures)}; worst at the size {entry.worst_size} of {entry.sizes}"
    )


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
        limits=limits(graph.part, graph.precision),
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
    """Noise judges float32 only."""
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
    """Run one input; a graph that refuses it fails the gate as one that answers wrongly does."""
    try:
        return call(*inputs)
    except Exception as error:
        raise ParityError(
            f"{graph.file} in {graph.precision} cannot run an input of the size {size}: {error}"
        ) from error
