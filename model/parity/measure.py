"""Outputs of a model, and how far a runtime's outputs are from them; without torch.

Shapes: B batch, N patches, L tokens, D embedding width, K classes, H W pixels or rows and columns
of a map, S recorded patches, P recorded pixels of a map.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.graphs import DenseTask, Precision
from model.manifest import ParityEntry
from model.package import Progress
from model.parity.inputs import TextInput, VisionInput
from model.parity.limits import limits
from model.runtime.base import Runtime, VisionOutput
from model.runtime.loaded_graphs import LoadedGraph
from model.segmentation import average_groups, l2_normalize, segment
from model.winner_map import Labels

Output = TypeVar("Output")
Item = TypeVar("Item")
FloatArray = NDArray[np.float32]
TINY: Final = 1e-12


class ParityError(ValueError):
    """An exported graph does not compute what the model computes."""


def counted(items: Sequence[Item], text: str, progress: Progress) -> Iterator[Item]:
    """Yield items, and say before each which it is: `text: 3 of 14`."""
    for number, item in enumerate(items, 1):
        progress(f"{text}: {number} of {len(items)}")
        yield item


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Indices of the patches, and of the pixels of a flattened map, that each image has."""

    rows_BS: NDArray[np.int64]
    points_BP: NDArray[np.int64]

    def of_patches(self, patches_BND: FloatArray) -> FloatArray:
        """The recorded patches [B, S, D]."""
        return np.take_along_axis(patches_BND, self.rows_BS[:, :, None], axis=1)

    def of_map(self, maps: FloatArray) -> FloatArray:
        """The recorded pixels of maps [B, ..., H, W]: [B, ..., P]."""
        flat = maps.reshape(*maps.shape[:-2], -1)
        axes = (len(flat), *[1] * (flat.ndim - 2), -1)
        return np.take_along_axis(flat, self.points_BP.reshape(axes), axis=-1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisionCase:
    """Images and the model's outputs.

    Attributes:
        masks: For each image, its labels and the pixels with a clear winner, both [H, W].
        samples: The only places that patches and maps have; None if they have all.
    """

    given: VisionInput
    output: VisionOutput
    masks: tuple[tuple[Labels, NDArray[np.bool_]], ...]
    dense: Mapping[DenseTask, FloatArray] = field(default_factory=dict)
    samples: Samples | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextCase:
    """Texts and their embeddings."""

    given: TextInput
    output_BD: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """Everything that exports are compared with.

    Attributes:
        name: What computed it, for the manifest.
        features: Patch features to segment with: "values" or "patches".
        classes_KD: Embeddings of the classes.
        prompts: Prompts of the classes; without them texts are not judged by masks.
        prompts_of_class: The number of prompts of each class.
        cpu_precision: As in the manifest.
    """

    name: str
    features: str
    cpu_precision: Precision | None
    classes_KD: FloatArray
    vision: tuple[VisionCase, ...]
    text: tuple[TextCase, ...]
    prompts: TextInput | None = None
    prompts_of_class: tuple[int, ...] = ()

    @property
    def tasks(self) -> set[DenseTask]:
        """The dense heads that it has maps of."""
        return {task for case in self.vision for task in case.dense}


def segmenting_features(output: VisionOutput, features: str) -> FloatArray:
    """The patch features [B, N, D] to segment with: "values" or "patches"."""
    return output.values_BND if features == "values" else output.patches_BND


def measure(
    reference: Reference,
    runtime: Runtime,
    graph: LoadedGraph,
    *,
    rounding: Precision | None = None,
    progress: Progress = lambda _: None,
) -> ParityEntry:
    """Measure how far a runtime's outputs are from the model's; see `ParityEntry.passed`.

    Args:
        reference: Inputs and outputs of the same model in torch.
        runtime: Has the graph loaded.
        graph: The graph to measure.
        rounding: Precision whose limits apply; None for that of the graph.
        progress: Called with each input.

    Raises:
        ParityError: An output has a wrong shape, or the graph fails on an input.
    """
    if graph.part == "vision":
        found = _compare_vision(reference, runtime, graph, progress)
    elif graph.part == "text":
        found = _compare_text(reference, runtime, graph)
    else:
        found = _compare_maps(reference, runtime, graph, graph.part)
    bounds = limits(graph.part, rounding or graph.precision, reference.cpu_precision)
    if graph.part == "text" and reference.prompts is None:
        bounds = bounds.model_copy(update={"min_mask_agreement": None})
    return ParityEntry(
        file=graph.file,
        runtime=runtime.name,
        precision=graph.precision,
        reference=reference.name,
        limits=bounds,
        **found.numbers(),
    )


def describe(entry: ParityEntry) -> str:
    """Describe a failed measurement."""
    return (
        f"{entry.file} on {entry.runtime} in {entry.precision} differs from {entry.reference}: "
        f"{'; '.join(entry.failures)}; worst at the size {entry.worst_size} of {entry.sizes}"
    )


@dataclass(slots=True)
class _Differences:
    """What was found on all inputs of a graph; `ParityEntry` explains the numbers.

    An output with NaN or infinity counts only in `is_finite`: comparisons with NaN are false.
    """

    sizes: list[tuple[int, ...]] = field(default_factory=list)
    is_finite: bool = True
    worst_size: tuple[int, ...] = ()
    max_abs_diff: float = 0.0
    max_relative_diff: float = 0.0
    values: dict[str, list[NDArray[Any]]] = field(default_factory=lambda: defaultdict(list))

    def add_embeddings(self, ours: FloatArray, theirs: FloatArray) -> bool:
        """Compare global [B, D] or patch [B, N, D] embeddings of the input of the last size.

        Returns:
            Whether ours are finite; if not, skip further comparisons of them.

        Raises:
            ParityError: The shapes differ.
        """
        lengths = np.maximum(np.linalg.norm(theirs, axis=-1), TINY)
        if not self._add(ours, theirs, lengths):
            return False
        cosines = (l2_normalize(ours) * l2_normalize(theirs)).sum(axis=-1)
        self.values["patches" if ours.ndim == 3 else "cls"].append(cosines)
        error = np.abs(np.linalg.norm(ours, axis=-1) - np.linalg.norm(theirs, axis=-1)) / lengths
        self.values["length"].append(error)
        return True

    def add_maps(self, task: DenseTask, ours: FloatArray, theirs: FloatArray) -> None:
        """Compare dense maps likewise."""
        scale = np.sqrt(np.mean(np.square(theirs, dtype=np.float64)))
        if not self._add(ours, theirs, np.maximum(scale, TINY)):
            return
        if task == "depth":
            self.values["depth"].append(np.abs(ours - theirs) / np.maximum(theirs, 1e-3))
        elif task == "normals":
            self.values["normals"].append(_angles(ours, theirs))
        else:
            self.values["same"].append(ours.argmax(axis=1) == theirs.argmax(axis=1))

    def add_masks(self, case: VisionCase, features_BND: FloatArray, classes_KD: FloatArray) -> None:
        """Segment each image with these patches and classes, by the code of the server."""
        for item_ND, (labels_HW, clear_HW) in zip(features_BND, case.masks, strict=False):
            size_hw = labels_HW.shape
            found = segment(item_ND, classes_KD, grid_hw=case.output.grid_hw, size_hw=size_hw)
            same_HW = found.labels_HW == labels_HW
            self.values["same"].append(same_HW)
            self.values["clear_same"].append(same_HW[clear_HW])

    def numbers(self) -> dict[str, Any]:
        """The fields of `ParityEntry`; those that do not apply are None."""
        all_values = {
            name: np.concatenate([array.ravel() for array in arrays])
            for name, arrays in self.values.items()
        }
        kept = {name: array for name, array in all_values.items() if array.size}
        mean = {name: float(array.mean(dtype=np.float64)) for name, array in kept.items()}
        lowest = {name: float(array.min()) for name, array in kept.items()}
        return {
            "sizes": self.sizes,
            "worst_size": self.worst_size,
            "is_finite": self.is_finite,
            "max_abs_diff": self.max_abs_diff,
            "max_relative_diff": self.max_relative_diff,
            "max_length_error": float(kept["length"].max()) if "length" in kept else None,
            "min_cosine_cls": lowest.get("cls"),
            "mean_cosine_cls": mean.get("cls"),
            "min_cosine_patches": lowest.get("patches"),
            "mean_cosine_patches": mean.get("patches"),
            "mask_agreement": mean.get("same"),
            "clear_mask_agreement": mean.get("clear_same"),
            "depth_error": mean.get("depth"),
            "normals_degrees": mean.get("normals"),
        }

    def _add(self, ours: FloatArray, theirs: FloatArray, scale: NDArray[np.floating]) -> bool:
        if ours.shape != theirs.shape:
            raise ParityError(f"shape {list(ours.shape)} instead of {list(theirs.shape)}")
        if not np.isfinite(ours).all():
            self.is_finite, self.worst_size = False, self.sizes[-1]
            return False
        apart = ours - theirs
        self.max_abs_diff = max(self.max_abs_diff, float(np.abs(apart).max()))
        length = np.linalg.norm(apart, axis=-1) if scale.ndim else np.abs(apart)
        relative = float((length / scale).max())
        if self.is_finite and relative >= self.max_relative_diff:
            self.max_relative_diff, self.worst_size = relative, self.sizes[-1]
        return True


def _angles(ours_B3HW: FloatArray, theirs_B3HW: FloatArray) -> NDArray[np.float64]:
    """Angles [B, H, W] in degrees between vectors of any length."""
    # From the chord, in float64: an arc cosine near one loses half of the digits.
    units = []
    for vectors in (ours_B3HW, theirs_B3HW):
        exact = vectors.astype(np.float64)
        units.append(exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), TINY))
    chord = np.linalg.norm(units[0] - units[1], axis=1)
    return np.asarray(np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1))))


def _compare_vision(
    reference: Reference, runtime: Runtime, graph: LoadedGraph, progress: Progress
) -> _Differences:
    found = _Differences()
    text = f"comparing {graph.file} on {runtime.name}"
    for case in counted(reference.vision, text, progress):
        found.sizes.append(case.given.size)
        ours = _run(graph, case.given.size, runtime.encode_images, case.given.pixels_B3HW)
        pairs = [
            (ours.cls1_BD, case.output.cls1_BD),
            (ours.cls2_BD, case.output.cls2_BD),
            (_recorded(ours.patches_BND, case.samples), case.output.patches_BND),
            (_recorded(ours.values_BND, case.samples), case.output.values_BND),
        ]
        if all([found.add_embeddings(*pair) for pair in pairs]):
            features_BND = segmenting_features(ours, reference.features)
            found.add_masks(case, features_BND, reference.classes_KD)
    return found


def _compare_text(reference: Reference, runtime: Runtime, graph: LoadedGraph) -> _Differences:
    found = _Differences()

    def embed(given: TextInput) -> FloatArray:
        shape = given.token_ids_BL.shape
        return _run(graph, shape, runtime.encode_texts, given.token_ids_BL, given.mask_BL)

    for case in reference.text:
        found.sizes.append(case.given.token_ids_BL.shape)
        found.add_embeddings(embed(case.given), case.output_BD)
    if reference.prompts is not None:
        prompts_PD = embed(reference.prompts)
        if np.isfinite(prompts_PD).all():
            classes_KD = average_groups(prompts_PD, reference.prompts_of_class)
            for seen in reference.vision:
                features_BND = segmenting_features(seen.output, reference.features)
                found.add_masks(seen, features_BND, classes_KD)
    return found


def _compare_maps(
    reference: Reference, runtime: Runtime, graph: LoadedGraph, task: DenseTask
) -> _Differences:
    found = _Differences()
    for case in reference.vision:
        if task in case.dense:
            found.sizes.append(case.given.size)
            ours = _run(graph, case.given.size, runtime.estimate, task, case.given.pixels_B3HW)
            if case.samples is not None:
                ours = case.samples.of_map(ours)
            found.add_maps(task, ours, case.dense[task])
    return found


def _recorded(patches_BND: FloatArray, samples: Samples | None) -> FloatArray:
    return patches_BND if samples is None else samples.of_patches(patches_BND)


def _run(
    graph: LoadedGraph, size: tuple[int, ...], call: Callable[..., Output], *inputs: object
) -> Output:
    try:
        return call(*inputs)
    except Exception as error:
        raise ParityError(
            f"{graph.file} in {graph.precision} cannot run an input of the size {size}: {error}"
        ) from error
