"""A runtime made of graphs that map named arrays to named arrays.

Shapes: B batch, N patches, L tokens, D embedding width, H W pixels, 3 colour channels (RGB).
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from model.graphs import DENSE_TASKS, VISION_OUTPUTS, DenseTask, Part, Precision
from model.package import ModelPackage
from model.runtime.base import Device, VisionOutput, check_pixels, check_tokens, still_open
from model.runtime.choice import RuntimeChoice
from model.runtime.loaded_graphs import LoadedGraph, loaded_graphs

Arrays = Mapping[str, NDArray[Any]]
# A dense head halves the patch grid and doubles it again, so both sides must be even.
PATCHES_OF_A_HEAD = 2


class Graph(Protocol):
    """One graph, ready to run; one call at a time."""

    def run(self, inputs: Arrays) -> Arrays:
        """Compute all outputs, as arrays that later calls do not overwrite.

        Raises:
            Interrupted: `interrupt` was called meanwhile.
        """
        ...

    def interrupt(self) -> None:
        """Make the running call of another thread raise `Interrupted` soon."""
        ...

    def close(self) -> None:
        """Release the graph."""
        ...


class GraphRuntime:
    """Vision, text and dense heads on the graphs of a package.

    A head is loaded on its first use, as each contains its own encoder.

    Args:
        package: Has the graphs.
        choice: Decides which of them are loaded.
        open_graph: Loads one graph.
    """

    name = ""

    def __init__(
        self,
        package: ModelPackage,
        choice: RuntimeChoice,
        open_graph: Callable[[LoadedGraph], Graph],
    ) -> None:
        self.precision: Precision = choice.precision
        self.device: Device = choice.device
        self._patch_size = package.manifest.patch_size
        self._max_tokens = package.manifest.max_text_tokens
        loaded = loaded_graphs(package.manifest, choice.runtime, choice.precision)
        self._sources: dict[Part, LoadedGraph] = {graph.part: graph for graph in loaded}
        self.tasks: tuple[DenseTask, ...] = tuple(t for t in DENSE_TASKS if t in self._sources)
        self._open_graph = open_graph
        self._is_open = True
        self._graphs: dict[Part, Graph] = {}
        for part in ("vision", "text"):
            self._graphs[part] = open_graph(self._sources[part])

    def encode_images(self, pixels_B3HW: NDArray[np.float32]) -> VisionOutput:
        """Embed images of one size; see `Runtime.encode_images`."""
        grid_hw = check_pixels(pixels_B3HW, patch_size=self._patch_size)
        outputs = self._graph("vision").run({"pixel_values": pixels_B3HW})
        cls1_BD, cls2_BD, patches_BND, values_BND = (outputs[name] for name in VISION_OUTPUTS)
        return VisionOutput(
            cls1_BD=cls1_BD,
            cls2_BD=cls2_BD,
            patches_BND=patches_BND,
            values_BND=values_BND,
            grid_hw=grid_hw,
        )

    def encode_texts(
        self, token_ids_BL: NDArray[np.int64], mask_BL: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Embed texts; see `Runtime.encode_texts`."""
        check_tokens(token_ids_BL, mask_BL, max_tokens=self._max_tokens)
        inputs = {"input_ids": token_ids_BL, "attention_mask": mask_BL}
        return cast("NDArray[np.float32]", self._graph("text").run(inputs)["text_embeddings"])

    def estimate(self, task: DenseTask, pixels_B3HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run a dense head; see `Runtime.estimate`."""
        if task not in self.tasks:
            raise ValueError(f"this package has no head for {task}")
        check_pixels(pixels_B3HW, patch_size=PATCHES_OF_A_HEAD * self._patch_size)
        outputs = self._graph(task).run({"pixel_values": pixels_B3HW})
        return cast("NDArray[np.float32]", outputs[task])

    def interrupt(self) -> None:
        """End the running call of any graph; see `Runtime.interrupt`."""
        for graph in list(self._graphs.values()):
            graph.interrupt()

    def free(self, part: Part) -> None:
        """Free one graph; its next use loads it again."""
        if part in self._graphs:
            self._graphs.pop(part).close()

    def close(self) -> None:
        """Free all graphs."""
        self._is_open = False
        while self._graphs:
            self._graphs.popitem()[1].close()

    def _graph(self, part: Part) -> Graph:
        if part not in self._graphs and self._is_open:
            self._graphs[part] = self._open_graph(self._sources[part])
        graph: Graph = still_open(self._graphs.get(part))
        return graph
