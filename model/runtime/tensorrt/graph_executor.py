"""Run one engine on a lane's CUDA stream: arrays in, arrays out."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.runtime.tensorrt.buffers import Buffers, Slot, fetch, lay_out, store
from model.runtime.tensorrt.cuda import GpuError, GpuLibraries
from model.runtime.tensorrt.engines import LoadedEngine
from model.runtime.tensorrt.profiles import Shape, TensorRtOptions, choose_profile, split_batch

LOGGER = logging.getLogger(__name__)
Arrays = dict[str, NDArray[Any]]
# Runs of a shape before it is recorded: in the first, TensorRT finishes deferred setup.
RUNS_BEFORE_CAPTURE = 1


class LaneStream:
    """A CUDA stream, an event to wait for it, and memory. Used by one thread at a time.

    Attributes:
        handle: The stream as an integer, for TensorRT.
        buffers: Memory of all graphs that run on the stream.
    """

    def __init__(self, libraries: GpuLibraries, device_index: int) -> None:
        """Make stream and event.

        Raises:
            GpuError: The GPU cannot be used; nothing stays allocated.
        """
        self.libraries = libraries
        self._device_index = device_index
        cuda, runtime = libraries.cuda, libraries.cuda.runtime
        self.use_device()
        with ExitStack() as cleanup:
            # Not synchronised with the default stream, which other libraries may use.
            self._stream: Any = cuda(
                "cudaStreamCreateWithFlags", "make a stream", runtime.cudaStreamNonBlocking
            )
            cleanup.callback(runtime.cudaStreamDestroy, self._stream)
            # The thread that waits sleeps; spinning would burn a core that decoding needs.
            flags = runtime.cudaEventBlockingSync | runtime.cudaEventDisableTiming
            self._event: Any = cuda("cudaEventCreateWithFlags", "make an event", flags)
            cleanup.pop_all()
        self.buffers = Buffers(cuda)
        self.handle = int(self._stream)

    def use_device(self) -> None:
        """Select the GPU for the calling thread; CUDA keeps the choice per thread."""
        self.libraries.cuda(
            "cudaSetDevice",
            f"be given to this thread as number {self._device_index}",
            self._device_index,
        )

    def copy(self, source: int, target: int, num_bytes: int, *, to_device: bool) -> None:
        """Queue a copy between page-locked host memory and the GPU."""
        kinds = self.libraries.cuda.runtime.cudaMemcpyKind
        kind = kinds.cudaMemcpyHostToDevice if to_device else kinds.cudaMemcpyDeviceToHost
        self.libraries.cuda(
            "cudaMemcpyAsync",
            f"copy {num_bytes} bytes",
            target,
            source,
            num_bytes,
            kind,
            self._stream,
        )

    def wait(self) -> None:
        """Sleep until everything on the stream is done.

        Raises:
            GpuError: Something on it failed.
        """
        cuda = self.libraries.cuda
        cuda("cudaEventRecord", "mark the end of a batch", self._event, self._stream)
        cuda("cudaEventSynchronize", "finish a batch", self._event)

    def drain(self) -> None:
        """Wait after a failure, so that nothing uses the memory when it is freed."""
        self.libraries.cuda.runtime.cudaStreamSynchronize(self._stream)

    def begin_capture(self) -> None:
        """Record what is queued from here on, instead of running it."""
        modes = self.libraries.cuda.runtime.cudaStreamCaptureMode
        # The global mode would forbid other lanes to reserve memory during the capture.
        self.libraries.cuda(
            "cudaStreamBeginCapture",
            "record a graph",
            self._stream,
            modes.cudaStreamCaptureModeThreadLocal,
        )

    def end_capture(self) -> Any:
        """Return the recorded graph, ready to launch.

        Raises:
            GpuError: The recorded work cannot be a graph.
        """
        cuda = self.libraries.cuda
        graph = cuda("cudaStreamEndCapture", "end a recording", self._stream)
        try:
            return cuda("cudaGraphInstantiate", "prepare a recorded graph", graph, 0)
        finally:
            cuda.runtime.cudaGraphDestroy(graph)

    def launch(self, graph: Any) -> None:
        """Queue a recorded graph."""
        self.libraries.cuda("cudaGraphLaunch", "start a recorded graph", graph, self._stream)

    def forget(self, graph: Any) -> None:
        """Free a recorded graph."""
        self.libraries.cuda.runtime.cudaGraphExecDestroy(graph)

    def close(self) -> None:
        """Free memory, event and stream; failures are only logged."""
        runtime = self.libraries.cuda.runtime
        runtime.cudaSetDevice(self._device_index)
        try:
            self.buffers.close()
        except GpuError as error:
            LOGGER.warning("a lane's memory could not be freed: %s", str(error))
        runtime.cudaEventDestroy(self._event)
        runtime.cudaStreamDestroy(self._stream)


@dataclass(slots=True)
class _PreparedShape:
    """An execution context for one input shape, and the places of its tensors.

    Each shape has its own context, since a recorded CUDA graph is valid only while its context is
    unchanged. Contexts are cheap: all contexts of a lane share one piece of memory.

    Source: TensorRT documentation, on CUDA graphs and on dynamic shapes.
    """

    context: Any
    inputs: list[Slot]
    outputs: list[Slot]
    input_bytes: int
    output_bytes: int
    activation_bytes: int
    generation: int = -1
    num_runs: int = 0
    graph: Any = None


class GraphExecutor:
    """One engine on one lane. Used by one thread at a time."""

    def __init__(self, lane: LaneStream, engine: LoadedEngine, options: TensorRtOptions) -> None:
        """Prepare nothing yet; a shape is prepared on its first run."""
        self._lane, self._engine, self._options = lane, engine, options
        self._prepared: OrderedDict[tuple[Shape, ...], _PreparedShape] = OrderedDict()
        self._may_capture = options.use_cuda_graphs

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
        profile = choose_profile(self._engine.profiles, shapes)
        if profile is None:
            raise ValueError(
                f"the engine was not built for inputs of {shapes}; choose a size that the model "
                "allows, or build the engine again"
            )
        num_items = next(iter(shapes.values()))[0]
        most = min(span.largest[0] for span in self._engine.profiles[profile].values())
        outputs: dict[str, NDArray[np.float32]] = {}
        start = 0
        for size in split_batch(num_items, most):
            check()
            part = {name: array[start : start + size] for name, array in inputs.items()}
            slots = self._run_part(part, names, profile)
            check()
            for slot in slots:  # out of the memory that the next run overwrites
                if slot.name not in outputs:
                    outputs[slot.name] = np.empty((num_items, *slot.shape[1:]), np.float32)
                rows = outputs[slot.name][start : start + size]
                fetch(slot, self._lane.buffers.outputs_host.address, rows)
            start += size
        return outputs

    def forget(self) -> None:
        """Free all prepared shapes."""
        while self._prepared:
            self._discard(self._prepared.popitem()[1])

    def _run_part(self, inputs: Arrays, names: Collection[str], profile: int) -> list[Slot]:
        """Run a batch that fits the profile; returns where the named outputs are in host memory."""
        key = tuple(inputs[name].shape for name in self._engine.inputs)
        try:
            shape = self._shape(key, inputs, profile)
            host = self._lane.buffers.inputs_host.address
            for slot in shape.inputs:
                store(slot, host, inputs[slot.name])
            self._submit(shape)
            wanted = [slot for slot in shape.outputs if slot.name in names]
            self._copy_back(wanted)
            self._lane.wait()
        except BaseException:
            self._lane.drain()
            if key in self._prepared:
                self._discard(self._prepared.pop(key))
            raise
        shape.num_runs += 1
        return wanted

    def _shape(self, key: tuple[Shape, ...], inputs: Arrays, profile: int) -> _PreparedShape:
        """The prepared shape with valid addresses; prepares it if it is new."""
        if key not in self._prepared:
            while len(self._prepared) >= self._options.max_shapes:
                self._discard(self._prepared.popitem(last=False)[1])
            self._prepared[key] = self._prepare(inputs, profile)
        self._prepared.move_to_end(key)
        shape = self._prepared[key]
        if shape.generation != self._lane.buffers.generation or shape.generation < 0:
            self._bind(shape)
        return shape

    def _prepare(self, inputs: Arrays, profile: int) -> _PreparedShape:
        trt, engine = self._lane.libraries.trt, self._engine
        with engine.lock:
            context = engine.engine.create_execution_context(
                trt.ExecutionContextAllocationStrategy.USER_MANAGED
            )
        if context is None:
            raise self._failure("make an execution context")
        if not context.set_optimization_profile_async(profile, self._lane.handle):
            raise self._failure(f"choose profile {profile}")
        for name, array in inputs.items():
            if not context.set_input_shape(name, array.shape):
                raise self._failure(f"take {name} of the shape {array.shape}")
        given, input_bytes = lay_out(
            {name: (inputs[name].shape, kind) for name, kind in engine.inputs.items()}
        )
        made, output_bytes = lay_out(
            {n: (tuple(context.get_tensor_shape(n)), kind) for n, kind in engine.outputs.items()}
        )
        activations = context.update_device_memory_size_for_shapes()
        return _PreparedShape(context, given, made, input_bytes, output_bytes, activations)

    def _bind(self, shape: _PreparedShape) -> None:
        """Set a context's addresses; they are part of a recorded graph, so that is freed."""
        self._forget_graph(shape)
        buffers = self._lane.buffers
        buffers.reserve(
            inputs=shape.input_bytes,
            outputs=shape.output_bytes,
            activations=shape.activation_bytes,
        )
        if shape.activation_bytes:
            shape.context.set_device_memory(
                buffers.activations.address, buffers.activations.size_bytes
            )
        for slots, base in (
            (shape.inputs, buffers.inputs_device.address),
            (shape.outputs, buffers.outputs_device.address),
        ):
            for slot in slots:
                if not shape.context.set_tensor_address(slot.name, base + slot.offset):
                    raise self._failure(f"take an address for {slot.name}")
        shape.num_runs = 0
        shape.generation = buffers.generation

    def _submit(self, shape: _PreparedShape) -> None:
        """Queue a run: copy of the inputs and kernels, one by one or as a recorded graph."""
        if shape.graph is None and self._may_capture and shape.num_runs >= RUNS_BEFORE_CAPTURE:
            shape.graph = self._record(shape)
        if shape.graph is None:
            self._enqueue(shape)
        else:
            self._lane.launch(shape.graph)

    def _enqueue(self, shape: _PreparedShape) -> None:
        lane, buffers = self._lane, self._lane.buffers
        lane.copy(
            buffers.inputs_host.address,
            buffers.inputs_device.address,
            shape.input_bytes,
            to_device=True,
        )
        if not shape.context.execute_async_v3(lane.handle):
            raise self._failure("start a batch")

    def _copy_back(self, slots: list[Slot]) -> None:
        """Queue the copies of outputs, which differ by request and so are not recorded."""
        buffers = self._lane.buffers
        for slot in slots:
            self._lane.copy(
                buffers.outputs_device.address + slot.offset,
                buffers.outputs_host.address + slot.offset,
                slot.num_bytes,
                to_device=False,
            )

    def _record(self, shape: _PreparedShape) -> Any:
        """Record a run as a CUDA graph; on failure None, and never tried again."""
        self._lane.begin_capture()
        failure: GpuError | None = None
        try:
            self._enqueue(shape)
        except GpuError as error:
            failure = error
        try:
            # Also after a failure: otherwise the stream stays in recording mode.
            graph = self._lane.end_capture()
        except GpuError as error:
            graph, failure = None, failure or error
        if failure is None:
            return graph
        if graph is not None:
            self._lane.forget(graph)
        self._may_capture = False
        LOGGER.warning(
            "CUDA graphs are off for this lane, which costs some speed: %s", str(failure)
        )
        return None

    def _discard(self, shape: _PreparedShape) -> None:
        self._forget_graph(shape)
        # TensorRT frees a context with its last reference.
        shape.context = None

    def _forget_graph(self, shape: _PreparedShape) -> None:
        graph, shape.graph = shape.graph, None
        if graph is not None:
            self._lane.forget(graph)

    def _failure(self, doing: str) -> GpuError:
        reason = self._lane.libraries.log.take_errors()
        return GpuError(f"TensorRT could not {doing}: {reason}. The log has what came before it")
