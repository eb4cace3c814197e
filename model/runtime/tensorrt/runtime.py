"""TensorRT on one GPU: engines in float32, bfloat16 or float16."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from model.package import ModelPackage
from model.runtime.base import InterruptibleCall, LaneShare
from model.runtime.choice import RuntimeChoice
from model.runtime.graph_runtime import Arrays, GraphRuntime
from model.runtime.loaded_graphs import LoadedGraph
from model.runtime.tensorrt.cuda import GpuLibraries, device_facts, load_libraries
from model.runtime.tensorrt.engines import ENGINES, LoadedEngine, keys_for, supply_engine
from model.runtime.tensorrt.graph_executor import GraphExecutor, LaneStream
from model.runtime.tensorrt.profiles import CACHE_ROOM, EngineOptions, TensorRtOptions


class TensorRtRuntime(GraphRuntime):
    """A lane on a GPU, with an engine for the package's images, texts and heads."""

    name = "tensorrt"

    def __init__(
        self,
        package: ModelPackage,
        choice: RuntimeChoice,
        share: LaneShare | None = None,
        *,
        options: TensorRtOptions | None = None,
        load: Callable[[], GpuLibraries] = load_libraries,
    ) -> None:
        """Load all engines, including those of heads; building a missing one takes minutes.

        Args:
            package: The verified package.
            choice: Chosen runtime, with the precision of the vision graph.
            share: Lane's share, for the cache folder; threads do not matter on a GPU.
            options: Options of TensorRT; None for the defaults with that cache.
            load: Loads the libraries.

        Raises:
            MissingRuntimeError: TensorRT or cuda-python is not installed.
            GpuError: There is no usable GPU, or not enough of its memory.
            PackageError: The package has no graph of this precision.
            ValueError: Engines are not built in this precision.
        """
        libraries, options = load(), options or usual_options(share, tf32=choice.tf32)
        device = device_facts(libraries, options.device_index)
        keys = keys_for(package, choice.precision, device=device, options=options)
        key_of = {(key.part, key.precision): key for key in keys}

        def open_graph(graph: LoadedGraph) -> TensorRtGraph:
            key = key_of[graph.part, graph.precision]
            # Equal for lanes of this process that may share an engine.
            facts = json.dumps(key.facts(), sort_keys=True)
            shared_key = id(libraries.trt), options.device_index, facts
            # The executor holds the engine, which leaves the GPU with its last executor.
            supply = partial(supply_engine, libraries, package, key, options)
            engine = ENGINES.take(shared_key, supply)
            return TensorRtGraph(lane, engine, options)

        with ExitStack() as cleanup:
            lane = LaneStream(libraries, options.device_index)
            cleanup.callback(lane.close)
            cleanup.callback(super().close)
            super().__init__(package, choice, open_graph)
            for task in self.tasks:
                self._graph(self._sources[task])
            self._cleanup = cleanup.pop_all()

    def close(self) -> None:
        """Free this lane; the engines leave the GPU with their last lane."""
        self._cleanup.close()


class TensorRtGraph:
    """An engine on a lane, used for one call at a time."""

    def __init__(self, lane: LaneStream, engine: LoadedEngine, options: TensorRtOptions) -> None:
        self._lane = lane
        self._executor = GraphExecutor(lane, engine, options)
        self._call: InterruptibleCall | None = None

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """Compute all outputs and copy the named ones; see `Graph.run`."""
        call = self._call = InterruptibleCall()
        try:
            self._lane.use_device()
            return self._executor.run(inputs, outputs, check=call.check)
        finally:
            self._call = None

    def interrupt(self) -> None:
        """End the running call before its next run; see `Graph.interrupt`.

        CUDA cannot stop started kernels, which use the lane's memory. So the current run of some
        milliseconds finishes and its result is dropped; further runs of a large batch are skipped.
        """
        call = self._call
        if call is not None:
            call.is_interrupted = True

    def release_idle_memory(self) -> None:
        """Nothing: lanes own their buffers, which fit the largest shape."""

    def close(self) -> None:
        """Free the prepared shapes."""
        self._executor.forget()


def usual_options(share: LaneShare | None, *, tf32: bool = False) -> TensorRtOptions:
    """The defaults, with the cache of `python -m model build-engine`."""
    engine = EngineOptions(tf32=tf32)
    if share is None or share.cache is None:
        return TensorRtOptions(engine=engine)
    return TensorRtOptions(engine=engine, cache_folder=share.cache / CACHE_ROOM)
