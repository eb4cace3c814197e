"""TensorRT on one GPU: engines in float32, bfloat16 or float16. It never ran on a GPU."""

import logging
from collections.abc import Callable
from contextlib import ExitStack

from model.package import ModelPackage, Progress
from model.runtime.base import LaneShare
from model.runtime.choice import RuntimeChoice
from model.runtime.graph_runtime import GraphRuntime
from model.runtime.loaded_graphs import LoadedGraph
from model.runtime.tensorrt.cuda import GpuLibraries, device_name, load_libraries
from model.runtime.tensorrt.engines import key_of, supply_engine
from model.runtime.tensorrt.graph import EngineGraph, LaneStream, Memory

LOGGER = logging.getLogger(__name__)


class TensorRtRuntime(GraphRuntime):
    """A lane on a GPU, with an engine for the package's images, texts and heads."""

    name = "tensorrt"
    takes_bytes = True

    def __init__(
        self,
        package: ModelPackage,
        choice: RuntimeChoice,
        share: LaneShare,
        *,
        progress: Progress = LOGGER.info,
        load: Callable[[], GpuLibraries] = load_libraries,
    ) -> None:
        """Load all engines and prepare all runs; building a missing engine takes minutes.

        Raises:
            MissingRuntimeError: TensorRT or cuda-python is not installed.
            GpuError: There is no usable GPU, not enough of its memory, or no engine.
            PackageError: The package has no graph of this precision.
        """
        libraries = load()
        device = device_name(libraries)
        graphs: list[EngineGraph] = []

        def open_graph(graph: LoadedGraph) -> EngineGraph:
            key = key_of(package, graph, share, device=device)
            engine = supply_engine(libraries, package, key, share.cache, progress=progress)
            # The graph holds the engine, which leaves the GPU with its last graph.
            graphs.append(EngineGraph(lane, engine))
            return graphs[-1]

        with ExitStack() as cleanup:
            lane = LaneStream(libraries)
            cleanup.callback(lane.close)
            super().__init__(package, choice, open_graph)
            # Heads too, and the towers that they read, so that no request waits for them.
            for task in self.tasks:
                self._graph(self._sources[task])
                if self._has_taps:
                    self._graph(self._tapped[task])
            memory = Memory(
                lane.cuda,
                max(graph.num_bytes for graph in graphs),
                max(graph.num_activation_bytes for graph in graphs),
            )
            cleanup.callback(memory.close)
            cleanup.callback(super().close)
            for graph in graphs:
                graph.prepare(memory)
            self._cleanup = cleanup.pop_all()

    def close(self) -> None:
        """Free this lane; the engines leave the GPU with their last lane."""
        self._cleanup.close()
