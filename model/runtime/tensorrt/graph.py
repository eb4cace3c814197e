"""Run an engine on a CUDA stream: arrays in, arrays out."""

import ctypes
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.runtime.base import InterruptibleCall
from model.runtime.graph_runtime import Arrays
from model.runtime.tensorrt.byte_pixels import BYTE_PIXELS, FLOAT_PIXELS
from model.runtime.tensorrt.cuda import Cuda, GpuError, GpuLibraries
from model.runtime.tensorrt.engines import LoadedEngine
from model.runtime.tensorrt.profiles import (
    Shape,
    batches,
    choose_profile,
    has_one_item_shape,
    largest_batch,
    runs_of,
)

LOGGER = logging.getLogger(__name__)
# TensorRT requires it of activations; it is more than enough for tensors.
ALIGNMENT: Final = 256
Outputs = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Slot:
    """Place of a tensor in memory: the same in that of the host and of the GPU."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Size of the tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """First place for the next tensor."""
        return self.offset + -(-self.num_bytes // ALIGNMENT) * ALIGNMENT

    def view(self, base: int) -> NDArray[Any]:
        """The tensor in host memory, in a buffer at this address."""
        memory = (ctypes.c_ubyte * self.num_bytes).from_address(base + self.offset)
        return np.ndarray(self.shape, self.dtype, memoryview(memory))


def store(slot: Slot, base: int, array: NDArray[Any]) -> None:
    """Copy items to the first rows of a tensor in host memory.

    Texts that are shorter are padded with zeros; pixels in float32 are rounded to 8 bits.
    """
    view = slot.view(base)[: len(array)]
    if view.dtype == np.uint8 and array.dtype == np.float32:
        array = np.rint(array * np.float32(255))
    if view.ndim == 2:
        view[:, array.shape[1] :] = 0
        view = view[:, : array.shape[1]]
    np.copyto(view, array, casting="unsafe")


class Memory:
    """Page-locked memory for tensors, and as much on the GPU, followed by that of activations."""

    def __init__(self, cuda: Cuda, num_bytes: int, num_activation_bytes: int) -> None:
        self.num_activation_bytes = num_activation_bytes
        with ExitStack() as cleanup:

            def reserve(allocate: str, free: str, kind: str, size: int) -> int:
                address = int(cuda(allocate, f"reserve {size} bytes of {kind}", size))
                cleanup.callback(cuda, free, f"free {kind}", address)
                return address

            self.host = reserve("cudaMallocHost", "cudaFreeHost", "locked memory", num_bytes)
            total = num_bytes + num_activation_bytes
            self.gpu = reserve("cudaMalloc", "cudaFree", "GPU memory", total)
            self.activations = self.gpu + num_bytes
            self._cleanup = cleanup.pop_all()

    def close(self) -> None:
        """Free it; nothing may be running."""
        self._cleanup.close()


class LaneStream:
    """A CUDA stream, and an event to wait for it. Used by one thread at a time."""

    def __init__(self, libraries: GpuLibraries) -> None:
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
            cleanup.callback(runtime.cudaEventDestroy, self._event)
            self._cleanup = cleanup.pop_all()
        self.handle = int(self._stream)

    def copy(self, source: int, target: int, num_bytes: int, *, to_gpu: bool) -> None:
        """Queue a copy between page-locked host memory and the GPU."""
        kinds = self.cuda.runtime.cudaMemcpyKind
        kind = kinds.cudaMemcpyHostToDevice if to_gpu else kinds.cudaMemcpyDeviceToHost
        doing = f"copy {num_bytes} bytes"
        self.cuda("cudaMemcpyAsync", doing, target, source, num_bytes, kind, self._stream)

    def wait(self) -> None:
        """Sleep until everything on the stream is done; GpuError if something failed."""
        self.cuda("cudaEventRecord", "mark the end of a batch", self._event, self._stream)
        self.cuda("cudaEventSynchronize", "finish a batch", self._event)

    def drain(self) -> None:
        """Wait after a failure, so that nothing uses the memory when it is freed."""
        self.cuda.runtime.cudaStreamSynchronize(self._stream)

    def record(self, enqueue: Callable[[], None]) -> Any:
        """Record what is queued as a CUDA graph, ready to launch; GpuError if it cannot be one."""
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
        self._cleanup.close()


@dataclass(slots=True)
class _Run:
    """An execution context, and the places of its tensors for the shapes that it was given.

    A recorded graph is valid only while its context is unchanged, so each batch has its own.

    Source: TensorRT documentation, on CUDA graphs and on dynamic shapes.
    """

    context: Any
    inputs: list[Slot]
    outputs: list[Slot]
    num_activation_bytes: int
    graph: Any = None

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return self.outputs[-1].end


class EngineGraph:
    """One engine on one lane, used for one call at a time; see `model.runtime.graph_runtime.Graph`.

    All execution contexts are made at first, so that none is made for a request.
    """

    def __init__(self, lane: LaneStream, engine: LoadedEngine) -> None:
        self._lane, self._engine = lane, engine
        self._memory: Memory | None = None
        self._fixed: dict[tuple[int, int], _Run] = {}
        self._contexts: dict[int, Any] = {}
        self._call: InterruptibleCall | None = None
        for index, profile in enumerate(engine.profiles):
            if not has_one_item_shape(profile):
                self._contexts[index] = self._context(index)
                continue
            for batch in batches(profile):
                shapes = {name: (batch, *span.largest[1:]) for name, span in profile.items()}
                self._fixed[index, batch] = self._given(self._context(index), shapes)
        runs = self._fixed.values()
        self.num_bytes = max((run.num_bytes for run in runs), default=0)
        self.num_activation_bytes = max((run.num_activation_bytes for run in runs), default=0)

    def prepare(self, memory: Memory) -> None:
        """Run each batch of each profile once in this memory, and record it as a CUDA graph.

        If a graph cannot be recorded, the log says why, and the kernels are launched one by one.
        """
        self._memory, records = memory, True
        for run in self._fixed.values():
            self._bind(run, memory)
            for slot in run.inputs:
                slot.view(memory.host)[...] = 1
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

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> Outputs:
        """Compute a batch, in several runs if it exceeds the engine's largest batch.

        Raises:
            Interrupted: `interrupt` was called.
            ValueError: No profile of the engine holds this shape.
            GpuError: CUDA or TensorRT failed.
        """
        given = {BYTE_PIXELS if n == FLOAT_PIXELS else n: a for n, a in inputs.items()}
        shapes = {name: array.shape for name, array in given.items()}
        index = choose_profile(self._engine.profiles, shapes)
        if index is None:
            raise ValueError(
                f"the engine was not built for inputs of {shapes}; choose a size that the model "
                "allows, or build the engine again"
            )
        num_items = next(iter(shapes.values()))[0]
        made: Outputs = {}
        call = self._call = InterruptibleCall()
        try:
            for rows, batch in runs_of(num_items, largest_batch(self._engine.profiles[index])):
                part = {name: array[rows] for name, array in given.items()}
                for name, array in self._run_part(index, batch, part, outputs).items():
                    whole = made.setdefault(name, np.empty((num_items, *array.shape[1:]), "f4"))
                    whole[rows] = array
                call.check()
        except BaseException:
            self._lane.drain()
            raise
        finally:
            self._call = None
        return made

    def interrupt(self) -> None:
        """End the running call before its next run; see `Graph.interrupt`.

        CUDA cannot stop started kernels: the current run of some milliseconds finishes and is
        dropped.
        """
        call = self._call
        if call is not None:
            call.is_interrupted = True

    def release_idle_memory(self) -> None:
        """Nothing: the lane's memory fits its largest run, and that of other sizes is freed."""

    def close(self) -> None:
        """Free graphs and contexts; TensorRT frees a context with its last reference."""
        for run in self._fixed.values():
            if run.graph is not None:
                self._lane.cuda.runtime.cudaGraphExecDestroy(run.graph)
        self._fixed.clear()
        self._contexts.clear()

    def _run_part(self, index: int, batch: int, part: Arrays, names: Sequence[str]) -> Outputs:
        """Run one batch; images of other sizes work in memory of their own."""
        run = self._fixed.get((index, batch))
        if run is not None and self._memory is not None:
            return self._execute(run, self._memory, part, names)
        shapes = {name: (batch, *array.shape[1:]) for name, array in part.items()}
        run = self._given(self._contexts[index], shapes)
        memory = Memory(self._lane.cuda, run.num_bytes, run.num_activation_bytes)
        with closing(memory):
            self._bind(run, memory)
            try:
                return self._execute(run, memory, part, names)
            finally:
                self._lane.drain()

    def _execute(self, run: _Run, memory: Memory, part: Arrays, names: Sequence[str]) -> Outputs:
        for slot in run.inputs:
            store(slot, memory.host, part[slot.name])
        if run.graph is None:
            self._enqueue(run, memory)
        else:
            self._lane.launch(run.graph)
        wanted = [slot for slot in run.outputs if slot.name in names]
        for slot in wanted:  # they differ by request, and so are not recorded
            source, target = memory.gpu + slot.offset, memory.host + slot.offset
            self._lane.copy(source, target, slot.num_bytes, to_gpu=False)
        self._lane.wait()
        count = len(next(iter(part.values())))
        # Copies: the next run overwrites the memory.
        return {slot.name: slot.view(memory.host)[:count].astype(np.float32) for slot in wanted}

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
        """Give shapes to a context, and place its tensors one after another, inputs first."""
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._failure(f"take {name} of the shape {shape}")
        engine, slots = self._engine, list[Slot]()
        for name, dtype in (engine.inputs | engine.outputs).items():
            shape = shapes.get(name) or tuple(context.get_tensor_shape(name))
            slots.append(Slot(name, shape, dtype, slots[-1].end if slots else 0))
        num_inputs = len(engine.inputs)
        num_activation_bytes = context.update_device_memory_size_for_shapes()
        return _Run(context, slots[:num_inputs], slots[num_inputs:], num_activation_bytes)

    def _bind(self, run: _Run, memory: Memory) -> None:
        """Set a context's addresses."""
        if run.num_activation_bytes:
            run.context.set_device_memory(memory.activations, memory.num_activation_bytes)
        for slot in (*run.inputs, *run.outputs):
            if not run.context.set_tensor_address(slot.name, memory.gpu + slot.offset):
                raise self._failure(f"take an address for {slot.name}")

    def _enqueue(self, run: _Run, memory: Memory) -> None:
        """Queue the copy of all inputs at once, and the kernels."""
        self._lane.copy(memory.host, memory.gpu, run.inputs[-1].end, to_gpu=True)
        if not run.context.execute_async_v3(self._lane.handle):
            raise self._failure("start a batch")

    def _failure(self, doing: str) -> GpuError:
        reason = self._lane.libraries.log.take_errors()
        return GpuError(f"TensorRT could not {doing}: {reason}. The log has what came before it")
