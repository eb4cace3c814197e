"""TensorRT on one GPU: engines in float32, bfloat16 or float16. It never ran on a GPU."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from model.package import ModelPackage
from model.runtime.base import InterruptibleCall, LaneShare
from model.runtime.choice import RuntimeChoice
from model.runtime.graph_runtime import Arrays, GraphRuntime
from model.runtime.loaded_graphs import LoadedGraph
from model.runtime.tensorrt.byte_pixels import BYTE_PIXELS, FLOAT_PIXELS
from model.runtime.tensorrt.cuda import GpuLibraries, device_facts, load_libraries
from model.runtime.tensorrt.engines import ENGINES, keys_for, supply_engine
from model.runtime.tensorrt.lane import EngineRunner, LaneStream
from model.runtime.tensorrt.memory import Memory, largest
from model.runtime.tensorrt.profiles import (
    CACHE_ROOM,
    DEFAULT_CACHE_FOLDER,
    TensorRtOptions,
)

LOGGER = logging.getLogger(__name__)


class TensorRtRuntime(GraphRuntime):
    """A lane on a GPU, with an engine for the package's images, texts and heads."""

    name = "tensorrt"
    takes_bytes = True

    def __init__(
        self,
        package: ModelPackage,
        choice: RuntimeChoice,
        share: LaneShare | None = None,
        *,
        options: TensorRtOptions | None = None,
        load: Callable[[], GpuLibraries] = load_libraries,
    ) -> None:
        """Load all engines and prepare all runs; building a missing engine takes minutes.

        Args:
            package: The verified package.
            choice: Chosen runtime, with the precision of the vision graph.
            share: Lane's share; threads do not matter on a GPU.
            options: Options of TensorRT; None for the defaults with the cache of the share.
            load: Loads the libraries.

        Raises:
            MissingRuntimeError: TensorRT or cuda-python is not installed.
            GpuError: There is no usable GPU, not enough of its memory, or no engine.
            PackageError: The package has no graph of this precision.
            ValueError: Engines are not built in this precision.
        """
        libraries = load()
        options = options or usual_options(share or LaneShare(), tf32=choice.tf32)
        device = device_facts(libraries)
        keys = keys_for(package, choice.precision, device=device, options=options)
        key_of = {(key.part, key.precision): key for key in keys}
        runners: list[EngineRunner] = []

        def open_graph(graph: LoadedGraph) -> TensorRtGraph:
            key = key_of[graph.part, graph.precision]
            say = partial(LOGGER.info, "building the %s engine: %s", key.part)
            path = key.cached_in(options.cache_folder)
            # The runner holds the engine, which leaves the GPU with its last runner.
            engine = ENGINES.take(
                path, lambda: supply_engine(libraries, package, key, path, progress=say)
            )
            runners.append(EngineRunner(lane, engine))
            return TensorRtGraph(lane, runners[-1])

        with ExitStack() as cleanup:
            lane = LaneStream(libraries)
            cleanup.callback(lane.close)
            super().__init__(package, choice, open_graph)
            # Heads too, and the towers that they read, so that no request waits for them.
            for task in self.tasks:
                self._graph(self._sources[task])
                if self._has_taps:
                    self._graph(self._tapped[task])
            memory = Memory(lane.cuda, largest(size for one in runners for size in one.sizes))
            cleanup.callback(memory.close)
            cleanup.callback(super().close)
            for runner in runners:
                runner.prepare(memory, records=options.use_cuda_graphs)
            self._cleanup = cleanup.pop_all()

    def close(self) -> None:
        """Free this lane; the engines leave the GPU with their last lane."""
        self._cleanup.close()


class TensorRtGraph:
    """An engine on a lane, used for one call at a time."""

    def __init__(self, lane: LaneStream, runner: EngineRunner) -> None:
        self._lane, self._runner = lane, runner
        self._call: InterruptibleCall | None = None

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """Compute all outputs and copy the named ones; see `Graph.run`."""
        call = self._call = InterruptibleCall()
        try:
            given = {BYTE_PIXELS if n == FLOAT_PIXELS else n: a for n, a in inputs.items()}
            return self._runner.run(given, outputs, check=call.check)
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
        """Nothing: the lane's memory fits its largest run, and that of other sizes is freed."""

    def close(self) -> None:
        """Free the prepared runs."""
        self._runner.close()


def usual_options(share: LaneShare, *, tf32: bool = False) -> TensorRtOptions:
    """The defaults, with the cache of `python -m model build-engine`."""
    folder = DEFAULT_CACHE_FOLDER if share.cache is None else share.cache / CACHE_ROOM
    return TensorRtOptions(
        max_batch_patches=share.max_batch_patches, tf32=tf32, cache_folder=folder
    )
