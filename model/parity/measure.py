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
from model.parity.limits import limits
from model.runtime.base import Runtime, VisionOutput
from model.runtime.loaded_graphs import LoadedGraph
from model.segmentation import average_groups, l2_normalize, segment
from model.text import TokenBatch
from model.winner_map import Labels

Item = TypeVar("Item")
Output = TypeVar("Output")
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
        pixels_B3HW: float32 RGB in [0, 1].
        masks: For each image, its labels and the pixels with a clear winner, both [H, W].
        samples: The only places that patches and maps have; None if they have all.
    """

    pixels_B3HW: FloatArray
    output: VisionOutput
    masks: tuple[tuple[Labels, NDArray[np.bool_]], ...]
    dense: Mapping[DenseTask, FloatArray] = field(default_factory=dict)
    samples: Samples | None = None

    @property
    def size(self) -> tuple[int, int, int]:
        """Batch, height and width."""
        batch, _, height, width = self.pixels_B3HW.shape
        return batch, height, width


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextCase:
    """Texts and their embeddings."""

    given: TokenBatch
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
    """

    name: str
    features: str
    cpu_precision: Precision | None
    classes_KD: FloatArray
    vision: tuple[VisionCase, ...]
    text: tuple[TextCase, ...]
    prompts: TokenBatch | None = None
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
        progress: Called with each batch of images.

    Raises:
        ParityError: An output has a wrong shape, or the graph fails on an input.
    """
    bounds = limits(graph.part, rounding or graph.precision, reference.cpu_precision)
    found = _Differences(reference, runtime, graph)
    if graph.part == "vision":
        found.compare_vision(progress)
    elif graph.part == "text":
        found.compare_text()
        if reference.prompts is None:
            bounds = bounds.model_copy(update={"min_mask_agreement": None})
    else:
        found.compare_maps(graph.part)
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
    """What is found on all inputs of a graph; `ParityEntry` explains the numbers.

    An output with NaN or infinity counts only in `is_finite`: comparisons with NaN are false.
    """

    reference: Reference
    runtime: Runtime
    graph: LoadedGraph
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    is_finite: bool = True
    worst_size: tuple[int, ...] = ()
    max_abs_diff: float = 0.0
    max_relative_diff: float = 0.0
    values: dict[str, list[NDArray[Any]]] = field(default_factory=lambda: defaultdict(list))

    def compare_vision(self, progress: Progress) -> None:
        text = f"comparing {self.graph.file} on {self.runtime.name}"
        for case in counted(self.reference.vision, text, progress):
            self.sizes.append(case.size)
            ours, theirs = self._run(self.runtime.encode_images, case.pixels_B3HW), case.output
            sampled = (lambda a: a) if case.samples is None else case.samples.of_patches
            pairs = [
                (ours.cls1_BD, theirs.cls1_BD),
                (ours.cls2_BD, theirs.cls2_BD),
                (sampled(ours.patches_BND), theirs.patches_BND),
                (sampled(ours.values_BND), theirs.values_BND),
            ]
            if all([self._add_embeddings(*pair) for pair in pairs]):
                features_BND = segmenting_features(ours, self.reference.features)
                self._add_masks(case, features_BND, self.reference.classes_KD)

    def compare_text(self) -> None:
        def embed(given: TokenBatch) -> FloatArray:
            return self._run(self.runtime.encode_texts, given.token_ids_BL, given.mask_BL)

        for case in self.reference.text:
            self.sizes.append(case.given.token_ids_BL.shape)
            self._add_embeddings(embed(case.given), case.output_BD)
        if self.reference.prompts is None:
            return
        prompts_PD = embed(self.reference.prompts)
        if np.isfinite(prompts_PD).all():
            classes_KD = average_groups(prompts_PD, self.reference.prompts_of_class)
            for seen in self.reference.vision:
                features_BND = segmenting_features(seen.output, self.reference.features)
                self._add_masks(seen, features_BND, classes_KD)

    def compare_maps(self, task: DenseTask) -> None:
        for case in self.reference.vision:
            if task not in case.dense:
                continue
            self.sizes.append(case.size)
            ours, theirs = (
                self._run(self.runtime.estimate, task, case.pixels_B3HW),
                case.dense[task],
            )
            if case.samples is not None:
                ours = case.samples.of_map(ours)
            scale = np.sqrt(np.mean(np.square(theirs, dtype=np.float64)))
            if not self._add(ours, theirs, np.maximum(scale, TINY)):
                continue
            if task == "depth":
                self.values["depth"].append(np.abs(ours - theirs) / np.maximum(theirs, 1e-3))
            elif task == "normals":
                self.values["normals"].append(_angles(ours, theirs))
            else:
                self.values["same"].append(ours.argmax(axis=1) == theirs.argmax(axis=1))

    def numbers(self) -> dict[str, Any]:
        """The fields of `ParityEntry`; those that do not apply are None."""
        joined = {
            name: np.concatenate([array.ravel() for array in arrays])
            for name, arrays in self.values.items()
        }
        kept = {name: array for name, array in joined.items() if array.size}
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

    def _run(self, call: Callable[..., Output], *inputs: object) -> Output:
        try:
            return call(*inputs)
        except Exception as error:
            size = self.sizes[-1] if self.sizes else ()
            raise ParityError(
                f"{self.graph.file} in {self.graph.precision} cannot run an input of the size "
                f"{size}: {error}"
            ) from error

    def _add_embeddings(self, ours: FloatArray, theirs: FloatArray) -> bool:
        """Compare embeddings, [B, D] or [B, N, D]; False if ours are not finite."""
        lengths = np.maximum(np.linalg.norm(theirs, axis=-1), TINY)
        if not self._add(ours, theirs, lengths):
            return False
        cosines = (l2_normalize(ours) * l2_normalize(theirs)).sum(axis=-1)
        self.values["patches" if ours.ndim == 3 else "cls"].append(cosines)
        error = np.abs(np.linalg.norm(ours, axis=-1) - np.linalg.norm(theirs, axis=-1)) / lengths
        self.values["length"].append(error)
        return True

    def _add_masks(
        self, case: VisionCase, features_BND: FloatArray, classes_KD: FloatArray
    ) -> None:
        """Segment each image with these patches and classes, by the code of the server."""
        for item_ND, (labels_HW, clear_HW) in zip(features_BND, case.masks, strict=False):
            size_hw = labels_HW.shape
            found = segment(item_ND, classes_KD, grid_hw=case.output.grid_hw, size_hw=size_hw)
            same_HW = found.labels_HW == labels_HW
            self.values["same"].append(same_HW)
            self.values["clear_same"].append(same_HW[clear_HW])

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
    exact = [vectors.astype(np.float64) for vectors in (ours_B3HW, theirs_B3HW)]
    ours, theirs = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), TINY) for v in exact)
    chord = np.linalg.norm(ours - theirs, axis=1)
    return np.asarray(np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1))))
