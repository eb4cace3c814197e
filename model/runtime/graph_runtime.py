"""A runtime made of graphs that map named arrays to named arrays.

Shapes: B batch, N patches, L tokens, D embedding width, H W pixels, 3 colour channels (RGB).
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from model.graphs import (
    DENSE_TASKS,
    EMBEDDING_TAPS,
    PATCH_OUTPUTS,
    TAPS,
    TEXT_OUTPUTS,
    DenseTask,
    Part,
    PatchOutput,
    Precision,
)
from model.package import ModelPackage
from model.runtime.base import Device, VisionOutput, check_pixels, check_tokens, still_open
from model.runtime.choice import RuntimeChoice
from model.runtime.loaded_graphs import LoadedGraph, loaded_graphs, tapped_graph

Arrays = Mapping[str, NDArray[Any]]
# A dense head halves the patch grid and doubles it again, so both sides must be even.
PATCHES_OF_A_HEAD = 2
CLS_OUTPUTS: Final = ("cls1", "cls2")
PATCH_OUTPUT_NAMES: Final[dict[PatchOutput, str]] = {
    "patches": "patch_embeddings",
    "values": "value_embeddings",
}
# One image of TIPSv2's native size; eight of them at once took 4 to 13 % less time each.
PIXELS_AT_ONCE: Final = 448 * 448
PATCHES_AT_ONCE: Final = 32 * 32
# 64 texts of 64 tokens at once kept 110 MB in MiniLM; in parts they keep 24, for 0.97 to 1.04 times
# the CPU time of the whole batch.
TOKENS_AT_ONCE: Final = 16 * 64
# A graph keeps the memory of its largest call: one image of 1280 x 1280 left 500 MB in
# EfficientNet-Lite0. To allocate the memory of an image of 320 x 320 again took 25 ms of CPU time.
PIXELS_TO_RELEASE: Final = 2 * PIXELS_AT_ONCE


class Graph(Protocol):
    """One graph, ready to run; one call at a time."""

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """Compute outputs by name, and perhaps others, as arrays that later calls do not overwrite.

        Raises:
            Interrupted: `interrupt` was called meanwhile.
        """
        ...

    def interrupt(self) -> None:
        """Make the running call of another thread raise `Interrupted` soon."""
        ...

    def release_idle_memory(self) -> None:
        """Free what the graph keeps for its next call; see `Runtime.release_idle_memory`."""
        ...

    def close(self) -> None:
        """Release the graph."""
        ...


def parts_of(inputs: Arrays) -> Iterator[dict[str, NDArray[Any]]]:
    """Cut a batch of images, taps or texts into parts for a CPU, so that it keeps little memory."""
    if "pixel_values" in inputs:
        size = PIXELS_AT_ONCE // math.prod(inputs["pixel_values"].shape[2:])
    elif "tap_patches" in inputs:
        size = PATCHES_AT_ONCE // math.prod(inputs["tap_patches"].shape[2:4])
    else:
        size = TOKENS_AT_ONCE // inputs["input_ids"].shape[1]
    size, num_items = max(1, size), len(next(iter(inputs.values())))
    for first in range(0, num_items, size):
        yield {name: array[first : first + size] for name, array in inputs.items()}


def joined(parts: Sequence[Arrays]) -> Arrays:
    """The outputs of all parts of a batch."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def has_large_images(inputs: Arrays, num_pixels: int = PIXELS_TO_RELEASE) -> bool:
    """Whether the images of a call have more pixels; by default than memory is kept for."""
    return math.prod(np.shape(inputs.get("pixel_values", ()))[2:]) > num_pixels


def is_large(inputs: Arrays, num_pixels: int = PIXELS_TO_RELEASE) -> bool:
    """Whether a call takes so much memory that a graph must not keep it for later calls.

    Large images do, and taps of several blocks, whose heads work in several times the image's size.
    """
    num_taps = np.shape(inputs.get("tap_patches", ()))[1:2]
    return num_taps > (1,) or has_large_images(inputs, num_pixels)


class GraphRuntime:
    """Vision, text and dense heads on the graphs of a package.

    A head is loaded on its first use. It reads taps of the vision graph in its own precision, so
    what was measured of it does not depend on that of the embeddings, except in int8: see
    `tapped_graph`.

    Args:
        package: Has the graphs.
        choice: Decides which of them are loaded.
        open_graph: Loads one graph.
        is_lazy: Load the towers on their first use, too.
    """

    name = ""
    takes_bytes = False

    def __init__(
        self,
        package: ModelPackage,
        choice: RuntimeChoice,
        open_graph: Callable[[LoadedGraph], Graph],
        *,
        is_lazy: bool = False,
    ) -> None:
        self.precision: Precision = choice.precision
        self.device: Device = choice.device
        self._patch_size = package.manifest.patch_size
        self._max_tokens = package.manifest.max_text_tokens
        self._has_taps = package.manifest.num_taps > 0
        self._reads_embeddings = package.manifest.taps == "embeddings"
        loaded = loaded_graphs(package.manifest, choice.runtime, choice.precision)
        self._sources: dict[Part, LoadedGraph] = {graph.part: graph for graph in loaded}
        self.tasks: tuple[DenseTask, ...] = tuple(t for t in DENSE_TASKS if t in self._sources)
        self._open_graph = open_graph
        self._is_open = True
        self._graphs: dict[LoadedGraph, Graph] = {}
        self._tapped: dict[DenseTask, LoadedGraph] = {
            task: tapped_graph(
                package.manifest, self._sources["vision"], self._sources[task], choice.runtime
            )
            for task in self.tasks
        }
        for part in () if is_lazy else loaded[:2]:
            self._graph(part)

    def encode_images(
        self,
        pixels_B3HW: NDArray[Any],
        tasks: Sequence[DenseTask] = (),
        patch_outputs: Collection[PatchOutput] = PATCH_OUTPUTS,
    ) -> VisionOutput:
        """Embed images of one size; see `Runtime.encode_images`."""
        for task in tasks:
            self._check_task(task, pixels_B3HW)
        grid_hw = self._grid(pixels_B3HW)
        vision = self._sources["vision"]
        sharing = {task for task in tasks if self._has_taps and self._tapped[task] == vision}
        patch_names = [PATCH_OUTPUT_NAMES[output] for output in patch_outputs]
        names = (*CLS_OUTPUTS, *patch_names, *(self._tap_outputs if sharing else ()))
        inputs, names = {"pixel_values": pixels_B3HW}, tuple(dict.fromkeys(names))
        outputs = self._graph(vision).run(inputs, names)
        cls1_BD, cls2_BD = (outputs[name] for name in CLS_OUTPUTS)
        none_B0D = cls1_BD[:, None][:, :0]
        patches_BND, values_BND = (
            outputs[PATCH_OUTPUT_NAMES[name]] if name in patch_outputs else none_B0D
            for name in PATCH_OUTPUTS
        )
        shared = self._taps(outputs, grid_hw) if sharing else {}
        maps = {
            task: self._head(task, shared if task in sharing else self._read(task, pixels_B3HW))
            for task in tasks
        }
        return VisionOutput(
            cls1_BD=cls1_BD,
            cls2_BD=cls2_BD,
            patches_BND=patches_BND,
            values_BND=values_BND,
            grid_hw=grid_hw,
            maps=maps,
        )

    def encode_texts(
        self, token_ids_BL: NDArray[np.int64], mask_BL: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Embed texts; see `Runtime.encode_texts`."""
        check_tokens(token_ids_BL, mask_BL, max_tokens=self._max_tokens)
        inputs = {"input_ids": token_ids_BL, "attention_mask": mask_BL}
        (name,) = TEXT_OUTPUTS
        outputs = self._graph(self._sources["text"]).run(inputs, TEXT_OUTPUTS)
        return cast("NDArray[np.float32]", outputs[name])

    def estimate(self, task: DenseTask, pixels_B3HW: NDArray[Any]) -> NDArray[np.float32]:
        """Run a dense head; see `Runtime.estimate`."""
        self._check_task(task, pixels_B3HW)
        return self._head(task, self._read(task, pixels_B3HW))

    def interrupt(self) -> None:
        """End the running call of any graph; see `Runtime.interrupt`."""
        for graph in list(self._graphs.values()):
            graph.interrupt()

    def release_idle_memory(self) -> None:
        """Free what idle graphs keep; see `Runtime.release_idle_memory`."""
        for graph in list(self._graphs.values()):
            graph.release_idle_memory()

    def free(self, part: Part) -> None:
        """Free one graph; its next use loads it again."""
        graph = self._graphs.pop(self._sources[part], None)
        if graph is not None:
            graph.close()

    def close(self) -> None:
        """Free all graphs."""
        self._is_open = False
        while self._graphs:
            self._graphs.popitem()[1].close()

    def _check_task(self, task: DenseTask, pixels_B3HW: NDArray[Any]) -> None:
        if task not in self.tasks:
            raise ValueError(f"this package has no head for {task}")
        self._grid(pixels_B3HW, num_patches=PATCHES_OF_A_HEAD)

    def _grid(self, pixels_B3HW: NDArray[Any], num_patches: int = 1) -> tuple[int, int]:
        side = num_patches * self._patch_size
        return check_pixels(pixels_B3HW, patch_size=side, may_be_bytes=self.takes_bytes)

    @property
    def _tap_outputs(self) -> tuple[str, ...]:
        """Outputs of the vision graph that heads read."""
        return EMBEDDING_TAPS if self._reads_embeddings else TAPS

    def _read(self, task: DenseTask, pixels_B3HW: NDArray[Any]) -> Arrays:
        """What a head reads: taps, or pixels if its graph has its own tower."""
        pixels = {"pixel_values": pixels_B3HW}
        if not self._has_taps:
            return pixels
        grid_hw = self._grid(pixels_B3HW)
        return self._taps(self._graph(self._tapped[task]).run(pixels, self._tap_outputs), grid_hw)

    def _taps(self, outputs: Arrays, grid_hw: tuple[int, int]) -> Arrays:
        if not self._reads_embeddings:
            return outputs
        cls_BD, patches_BND = (outputs[name] for name in EMBEDDING_TAPS)
        batch, _, width = patches_BND.shape
        patches_B1hwD = patches_BND.reshape(batch, 1, *grid_hw, width)
        return dict(zip(TAPS, (cls_BD[:, None], patches_B1hwD), strict=True))

    def _head(self, task: DenseTask, available: Arrays) -> NDArray[np.float32]:
        names = TAPS if self._has_taps else ("pixel_values",)
        inputs = {name: available[name] for name in names}
        outputs = self._graph(self._sources[task]).run(inputs, (task,))
        return cast("NDArray[np.float32]", outputs[task])

    def _graph(self, source: LoadedGraph) -> Graph:
        if source not in self._graphs and self._is_open:
            self._graphs[source] = self._open_graph(source)
        graph: Graph = still_open(self._graphs.get(source))
        return graph
