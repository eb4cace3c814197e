"""One lane on the GPU: a stream, whose work runs in order, an event to wait for it, and memory."""

import logging
from contextlib import ExitStack
from typing import Any

from model.runtime.tensorrt.buffers import Buffers
from model.runtime.tensorrt.calls import GpuError
from model.runtime.tensorrt.libraries import Libraries

LOGGER = logging.getLogger(__name__)


class LaneStream:
    """A stream with what its graphs share. Used by one thread at a time.

    Attributes:
        handle: The stream as an integer, which is how TensorRT takes it.
        buffers: Memory for whatever runs on it.
    """

    def __init__(self, libraries: Libraries, device_index: int) -> None:
        """Make stream and event.

        Raises:
            GpuError: The GPU cannot be used; nothing is left behind.
        """
        self.libraries = libraries
        self._device_index = device_index
        cuda, runtime = libraries.cuda, libraries.cuda.runtime
        self.use_device()
        with ExitStack() as cleanup:
            # Not ordered with the default stream, which libraries of others may use.
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
        """Make the GPU this thread's: CUDA keeps the choice for each thread."""
        self.libraries.cuda(
            "cudaSetDevice",
            f"be given to this thread as number {self._device_index}",
            self._device_index,
        )

    def copy(self, source: int, target: int, num_bytes: int, *, to_device: bool) -> None:
        """Put a copy between the host's locked memory and the GPU's on the stream."""
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
        """After a failure: let go of the memory only when nothing uses it any more."""
        self.libraries.cuda.runtime.cudaStreamSynchronize(self._stream)

    def begin_capture(self) -> None:
        """From here on, record what is put on the stream instead of running it."""
        modes = self.libraries.cuda.runtime.cudaStreamCaptureMode
        # Other lanes go on reserving memory meanwhile, which the global mode would forbid.
        self.libraries.cuda(
            "cudaStreamBeginCapture",
            "record a graph",
            self._stream,
            modes.cudaStreamCaptureModeThreadLocal,
        )

    def end_capture(self) -> Any:
        """The recorded graph, ready to launch.

        Raises:
            GpuError: What was put on the stream cannot be recorded.
        """
        cuda = self.libraries.cuda
        graph = cuda("cudaStreamEndCapture", "end a recording", self._stream)
        try:
            return cuda("cudaGraphInstantiate", "prepare a recorded graph", graph, 0)
        finally:
            cuda.runtime.cudaGraphDestroy(graph)

    def launch(self, graph: Any) -> None:
        """Put a recorded graph on the stream."""
        self.libraries.cuda("cudaGraphLaunch", "start a recorded graph", graph, self._stream)

    def forget(self, graph: Any) -> None:
        """Free a recorded graph."""
        self.libraries.cuda.runtime.cudaGraphExecDestroy(graph)

    def close(self) -> None:
        """Free memory, event and stream; what fails is logged, since nothing can be done."""
        runtime = self.libraries.cuda.runtime
        runtime.cudaSetDevice(self._device_index)
        try:
            self.buffers.close()
        except GpuError as error:
            LOGGER.warning("a lane's memory could not be freed: %s", str(error))
        runtime.cudaEventDestroy(self._event)
        runtime.cudaStreamDestroy(self._stream)
