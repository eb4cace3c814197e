"""Run engines on a CUDA stream: arrays in, arrays out."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.runtime.tensorrt.cuda import GpuError, GpuLibraries
from model.runtime.tensorrt.engines import LoadedEngine
from model.runtime.tensorrt.memory import Memory, Sizes, Slot, lay_out, store
from model.runtime.tensorrt.profiles import (
    Shape,
    batches,
    choose_profile,
    has_one_item_shape,
    largest_batch,
    runs_of,
)

LOGGER = logging.getLogger(__name__)
Arrays = dict[str, NDArray[Any]]
# Takes an output out of the buffer at this address, which the next run overwrites.
Take = Callable[[Slot, int], None]


class LaneStream:
    """A CUDA stream, and an event to wait for it. Used by one thread at a time."""

    def __init__(self, libraries: GpuLibraries) -> None:
        """Make stream and event.

        Raises:
            GpuError: The GPU cannot be used; nothing stays allocated.
        """
        self.libraries, self.cuda = libraries, libraries.cuda
        runtime = self.cuda.runtime
        with ExitStack() as cleanup:
            # Not synchronised with the default stream, which other libraries may use.
            self._stream: Any = self.cuda(
                "cudaStreamCreateWithFlags", "make a stream", runtime.cudaStreamNonBlocking
            )
            cleanup.callback(runtime.cudaStreamDestroy, self._stream)
            # The thread that waits sleeps; spinning would burn a core that decoding needs.
            flags = runtime.cudaEventBlockingSync | runtime.cudaEventDisableTiming
            self._event: Any = self.cuda("cudaEventCreateWithFlags", "make an event", flags)
            cleanup.pop_all()
        self.handle = int(self._stream)

    def copy(self, source: int, target: int, num_bytes: int, *, to_gpu: bool) -> None:
        """Queue a copy between page-locked host memory and the GPU."""
        kinds = self.cuda.runtime.cudaMemcpyKind
        kind = kinds.cudaMemcpyHostToDevice if to_gpu else kinds.cudaMemcpyDeviceToHost
        doing = f"copy {num_bytes} bytes"
        self.cuda("cudaMemcpyAsync", doing, target, source, num_bytes, kind, self._stream)

    def wait(self) -> None:
        """Sleep until everything on the stream is done.

        Raises:
            GpuError: Something on it failed.
        """
        self.cuda("cudaEventRecord", "mark the end of a batch", self._event, self._stream)
        self.cuda("cudaEventSynchronize", "finish a batch", self._event)

    def drain(self) -> None:
        """Wait after a failure, so that nothing uses the memory when it is freed."""
        self.cuda.runtime.cudaStreamSynchronize(self._stream)

    def record(self, enqueue: Callable[[], None]) -> Any:
        """Record what is queued as a CUDA graph, ready to launch.

        Raises:
            GpuError: The work cannot be a graph.
        """
        modes = self.cuda.runtime.cudaStreamCaptureMode
        # The global mode would forbid other lanes to reserve memory during the capture.
        mode = modes.cudaStreamCaptureModeThreadLocal
        self.cuda("cudaStreamBeginCapture", "record a graph", self._stream, mode)
        try:
            enqueue()
        finally:
            # Also after a failure: otherwise the stream stays in recording mode.
            graph = self.cuda("cudaStreamEndCapture", "end a recording", self._stream)
        try:
            return self.cuda("cudaGraphInstantiate", "prepare a recorded graph", graph, 0)
        finally:
            self.cuda.runtime.cudaGraphDestroy(graph)

    def launch(self, graph: Any) -> None:
        """Queue a recorded graph."""
        self.cuda("cudaGraphLaunch", "start a recorded graph", graph, self._stream)

    def close(self) -> None:
        """Free event and stream."""
        self.cuda.runtime.cudaEventDestroy(self._event)
        self.cuda.runtime.cudaStreamDestroy(self._stream)


@dataclass(slots=True)
class _Run:
    """An execution context, and the places of its tensors for the shapes that it was given.

    A recorded graph is valid only while its context is unchanged, so each batch of a profile has
    its own. Contexts are cheap: all of a lane work in one piece of memory.

    Source: TensorRT documentation, on CUDA graphs and on dynamic shapes.
    """

    context: Any
    inputs: list[Slot]
    outputs: list[Slot]
    sizes: Sizes
    graph: Any = None


class EngineRunner:
    """One engine on one lane. Used by one thread at a time."""

    def __init__(self, lane: LaneStream, engine: LoadedEngine) -> None:
        """Make all execution contexts, so that none is made for a request.

        Raises:
            GpuError: TensorRT refuses a context or a shape.
        """
        self._lane, self._engine = lane, engine
        self._memory: Memory | None = None
        self._fixed: dict[tuple[int, int], _Run] = {}
        self._contexts: dict[int, Any] = {}
        for index, profile in enumerate(engine.profiles):
            if not has_one_item_shape(profile):
                self._contexts[index] = self._context(index)
                continue
            for batch in batches(profile):
                shapes = {name: (batch, *span.largest[1:]) for name, span in profile.items()}
                self._fixed[index, batch] = self._given(self._context(index), shapes)

    @property
    def sizes(self) -> Iterator[Sizes]:
        """What the prepared runs need."""
        return (run.sizes for run in self._fixed.values())

    def prepare(self, memory: Memory, *, records: bool) -> None:
        """Run each batch of each profile once, and record it as a CUDA graph.

        Args:
            memory: Enough for all prepared runs; it must live as long as the runner.
            records: Whether to use CUDA graphs. If one cannot be recorded, the log says why.

        Raises:
            GpuError: A run fails.
        """
        self._memory = memory
        for run in self._fixed.values():
            self._bind(run, memory)
            for slot in run.inputs:
                slot.view(memory.inputs_host)[...] = 1
            # In the first run, TensorRT finishes deferred setup.
            self._enqueue(run, memory)
            self._lane.wait()
            if not records:
                continue
            try:
                run.graph = self._lane.record(lambda run=run: self._enqueue(run, memory))  # type: ignore[misc]
            except GpuError as error:
                records = False
                LOGGER.warning("CUDA graphs are off, which costs some speed: %s", str(error))

    def run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        names: Collection[str],
        *,
        check: Callable[[], None] = lambda: None,
    ) -> dict[str, NDArray[np.float32]]:
        """Compute a batch, in several runs if it exceeds the engine's largest batch.

        Args:
            inputs: Arrays with one batch axis, the first.
            names: Outputs to copy to the host and to return.
            check: Called before and after each run; may raise to skip the rest.

        Raises:
            ValueError: No profile of the engine holds this shape.
            GpuError: CUDA or TensorRT failed.
        """
        shapes = {name: array.shape for name, array in inputs.items()}
        index = choose_profile(self._engine.profiles, shapes)
        if index is None:
            raise ValueError(
                f"the engine was not built for inputs of {shapes}; choose a size that the model "
                "allows, or build the engine again"
            )
        num_items = next(iter(shapes.values()))[0]
        outputs: dict[str, NDArray[np.float32]] = {}
        for rows, batch in runs_of(num_items, largest_batch(self._engine.profiles[index])):
            check()
            part = {name: array[rows] for name, array in inputs.items()}

            def take(slot: Slot, base: int, rows: slice = rows) -> None:
                if slot.name not in outputs:
                    outputs[slot.name] = np.empty((num_items, *slot.shape[1:]), np.float32)
                outputs[slot.name][rows] = slot.view(base)[: rows.stop - rows.start]

            try:
                self._run_part(index, batch, part, names, take=take)
            except BaseException:
                self._lane.drain()
                raise
            check()
        return outputs

    def _run_part(
        self, index: int, batch: int, part: Arrays, names: Collection[str], *, take: Take
    ) -> None:
        """Run one batch; images of other sizes work in memory of their own."""
        run = self._fixed.get((index, batch))
        if run is not None and self._memory is not None:
            self._execute(run, self._memory, part, names, take=take)
            return
        shapes = {name: (batch, *array.shape[1:]) for name, array in part.items()}
        run = self._given(self._contexts[index], shapes)
        with closing(Memory(self._lane.cuda, run.sizes)) as memory:
            self._bind(run, memory)
            try:
                self._execute(run, memory, part, names, take=take)
            finally:
                self._lane.drain()

    def _execute(
        self, run: _Run, memory: Memory, part: Arrays, names: Collection[str], *, take: Take
    ) -> None:
        for slot in run.inputs:
            store(slot, memory.inputs_host, part[slot.name])
        if run.graph is None:
            self._enqueue(run, memory)
        else:
            self._lane.launch(run.graph)
        wanted = [slot for slot in run.outputs if slot.name in names]
        for slot in wanted:  # they differ by request, and so are not recorded
            source, target = memory.outputs_gpu + slot.offset, memory.outputs_host + slot.offset
            self._lane.copy(source, target, slot.num_bytes, to_gpu=False)
        self._lane.wait()
        for slot in wanted:
            take(slot, memory.outputs_host)

    def close(self) -> None:
        """Free graphs and contexts; TensorRT frees a context with its last reference."""
        for run in self._fixed.values():
            if run.graph is not None:
                self._lane.cuda.runtime.cudaGraphExecDestroy(run.graph)
        self._fixed.clear()
        self._contexts.clear()

    def _context(self, profile: int) -> Any:
        strategy = self._lane.libraries.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with self._engine.lock:
            context = self._engine.engine.create_execution_context(strategy)
        if context is None:
            raise self._failure("make an execution context")
        if not context.set_optimization_profile_async(profile, self._lane.handle):
            raise self._failure(f"choose profile {profile}")
        return context

    def _given(self, context: Any, shapes: Mapping[str, Shape]) -> _Run:
        """Give shapes to a context."""
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._failure(f"take {name} of the shape {shape}")
        engine = self._engine
        inputs, input_bytes = lay_out({n: (shapes[n], kind) for n, kind in engine.inputs.items()})
        outputs, output_bytes = lay_out(
            {n: (tuple(context.get_tensor_shape(n)), kind) for n, kind in engine.outputs.items()}
        )
        activations = context.update_device_memory_size_for_shapes()
        return _Run(context, inputs, outputs, Sizes(input_bytes, output_bytes, activations))

    def _bind(self, run: _Run, memory: Memory) -> None:
        """Set a context's addresses."""
        if run.sizes.activations:
            run.context.set_device_memory(memory.activations, memory.sizes.activations)
        placed = [(slot, memory.inputs_gpu) for slot in run.inputs]
        placed += [(slot, memory.outputs_gpu) for slot in run.outputs]
        for slot, base in placed:
            if not run.context.set_tensor_address(slot.name, base + slot.offset):
                raise self._failure(f"take an address for {slot.name}")

    def _enqueue(self, run: _Run, memory: Memory) -> None:
        lane = self._lane
        lane.copy(memory.inputs_host, memory.inputs_gpu, run.sizes.inputs, to_gpu=True)
        if not run.context.execute_async_v3(lane.handle):
            raise self._failure("start a batch")

    def _failure(self, doing: str) -> GpuError:
        reason = self._lane.libraries.log.take_errors()
        return GpuError(f"TensorRT could not {doing}: {reason}. The log has what came before it")
