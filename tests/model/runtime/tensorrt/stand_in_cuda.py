"""A stand-in for `cuda.bindings.runtime` without a GPU: it checks calls and uses host memory.

Work on a stream runs only when a caller waits for it, so a read that comes too early gets old
bytes. Recorded work runs when its graph is launched. Every function can be made to fail.
"""

import ctypes
import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

Work = Callable[[], None]
Functions = dict[str, Callable[..., tuple[Any, ...]]]


class Misuse(AssertionError):
    """The program did something that CUDA or TensorRT leaves undefined."""


cudaError_t = enum.IntEnum(  # noqa: N816 - CUDA's name and numbers
    "cudaError_t",
    {
        "cudaSuccess": 0,
        "cudaErrorInvalidValue": 1,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorInsufficientDriver": 35,
        "cudaErrorInvalidDevice": 101,
        "cudaErrorIllegalAddress": 700,
        "cudaErrorStreamCaptureUnsupported": 900,
    },
)
cudaMemcpyKind = enum.IntEnum(  # noqa: N816
    "cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2}
)
cudaStreamCaptureMode = enum.IntEnum(  # noqa: N816
    "cudaStreamCaptureMode",
    {"cudaStreamCaptureModeGlobal": 0, "cudaStreamCaptureModeThreadLocal": 1},
)


@dataclass
class Stream:
    """Queued work, and work that is being recorded."""

    waiting: list[Work] = field(default_factory=list)
    recording: list[Work] | None = None
    is_spoilt: bool = False


OK = cudaError_t.cudaSuccess
FREEING = {
    "cudaFree",
    "cudaFreeHost",
    "cudaStreamDestroy",
    "cudaEventDestroy",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
}


class StandInCuda:
    """Looks like the module. Attributes below are for the tests.

    Attributes:
        called: Names of all functions in the order of their calls.
        failing: Errors by the number of the call; none by default.
        spoilt_from: Number of the call from which on all fail, as after an illegal access.
        memory_bytes: Size of the GPU's memory.
        returned_bytes: Bytes that were copied from the GPU to the host.
    """

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking = 1
    cudaEventBlockingSync = 1
    cudaEventDisableTiming = 2

    def __init__(self) -> None:
        self.called: list[str] = []
        self.failing: dict[int, cudaError_t] = {}
        self.spoilt_from: int | None = None
        self.memory_bytes = 1 << 40
        self.returned_bytes = 0
        self.properties = SimpleNamespace(name=b"Stand-in GPU", major=9, minor=0)
        self._lock = threading.RLock()
        self._next_handle = 1000
        self.device_memory: dict[int, Any] = {}
        self.host_memory: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, int] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}

        self._functions = self._stateless() | self._memory() | self._streams() | self._graphs()

    @property
    def num_alive(self) -> int:
        """Number of objects that were made and not freed."""
        kinds = (self.device_memory, self.host_memory, self.streams, self.events)
        return sum(map(len, (*kinds, self.graphs, self.executables)))

    def __getattr__(self, name: str) -> Any:
        """A function of CUDA, which notes its calls and fails if the test says so."""
        function = self.__dict__.get("_functions", {}).get(name)
        if function is None:
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            with self._lock:
                number = len(self.called)
                self.called.append(name)
                error = self.failing.get(number, OK)
                if self.spoilt_from is not None and number >= self.spoilt_from:
                    error = cudaError_t.cudaErrorIllegalAddress
                if error == OK or name == "cudaGetErrorString":
                    returned: tuple[Any, ...] = function(*arguments)
                    return returned
                # CUDA's frees return errors of earlier work, and free all the same.
                if name in FREEING:
                    function(*arguments)
                elif name == "cudaStreamEndCapture":
                    self.streams[arguments[0]].is_spoilt = True
                    function(*arguments)
                return error, None

        return call

    def device_bytes(self, address: int, num_bytes: int) -> Any:
        """A view of device memory, for kernels; `Misuse` if it is not within one piece."""
        return self._find(self.device_memory, address, num_bytes)

    def put(self, stream: int, work: Work) -> None:
        queue = self.streams[stream]
        (queue.waiting if queue.recording is None else queue.recording).append(work)

    def _stateless(self) -> Functions:
        invalid = cudaError_t.cudaErrorInvalidDevice
        return {
            "cudaGetDeviceProperties": lambda i: (invalid, None) if i else (OK, self.properties),
            "cudaDriverGetVersion": lambda: (OK, 13020),
            "cudaSetDevice": lambda _: (OK,),
            "cudaGetErrorString": lambda error: (OK, b"stand-in text of error %d" % error),
        }

    def _memory(self) -> Functions:
        return {
            "cudaMalloc": partial(self._reserve, self.device_memory),
            "cudaMallocHost": partial(self._reserve, self.host_memory),
            "cudaFree": partial(self._give_back, self.device_memory),
            "cudaFreeHost": partial(self._give_back, self.host_memory),
            "cudaMemcpyAsync": self._copy,
            "cudaMemGetInfo": self._memory_info,
        }

    def _streams(self) -> Functions:
        return {
            "cudaStreamCreateWithFlags": lambda _: self._add(self.streams, Stream()),
            "cudaStreamDestroy": lambda stream: self._finish(self.streams.pop(stream)),
            "cudaStreamSynchronize": lambda stream: self._finish(self.streams[stream]),
            "cudaEventCreateWithFlags": lambda _: self._add(self.events, 0),
            "cudaEventDestroy": partial(self._remove, self.events),
            "cudaEventRecord": self._record_event,
            "cudaEventSynchronize": lambda event: self._finish(self.streams[self.events[event]]),
        }

    def _graphs(self) -> Functions:
        return {
            "cudaStreamBeginCapture": self._begin_capture,
            "cudaStreamEndCapture": self._end_capture,
            "cudaGraphInstantiate": lambda g, _: self._add(self.executables, self.graphs[g]),
            "cudaGraphDestroy": partial(self._remove, self.graphs),
            "cudaGraphExecDestroy": partial(self._remove, self.executables),
            "cudaGraphLaunch": self._launch,
        }

    @staticmethod
    def _find(memory: dict[int, Any], address: int, num_bytes: int) -> Any:
        for start, piece in memory.items():
            if start <= address and address + num_bytes <= start + len(piece):
                return (ctypes.c_ubyte * num_bytes).from_address(address)
        raise Misuse(f"{num_bytes} bytes at {address} are not reserved")

    def _reserve(self, memory: dict[int, Any], size: int) -> tuple[Any, ...]:
        if any(stream.recording is not None for stream in self.streams.values()):
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None
        if sum(map(len, memory.values())) + size > self.memory_bytes:
            return cudaError_t.cudaErrorMemoryAllocation, None
        piece = (ctypes.c_ubyte * (size + 256))()
        offset = -ctypes.addressof(piece) % 256
        # The view has the reserved length and keeps the larger array alive.
        memory[ctypes.addressof(piece) + offset] = memoryview(piece)[offset : offset + size]
        return OK, ctypes.addressof(piece) + offset

    def _memory_info(self) -> tuple[Any, ...]:
        used = sum(map(len, self.device_memory.values()))
        return OK, self.memory_bytes - used, self.memory_bytes

    def _give_back(self, memory: dict[int, Any], address: int) -> tuple[Any, ...]:
        # CUDA waits for all work first.
        for stream in self.streams.values():
            self._finish(stream)
        if memory.pop(address, None) is None:
            raise Misuse(f"{address} was freed before, or never reserved")
        return (OK,)

    @staticmethod
    def _finish(stream: Stream) -> tuple[Any, ...]:
        waiting, stream.waiting = stream.waiting, []
        for work in waiting:
            work()
        return (OK,)

    def _add(self, kind: dict[int, Any], value: Any) -> tuple[Any, ...]:
        self._next_handle += 1
        kind[self._next_handle] = value
        return OK, self._next_handle

    @staticmethod
    def _remove(kind: dict[int, Any], handle: int) -> tuple[Any, ...]:
        del kind[handle]
        return (OK,)

    def _record_event(self, event: int, stream: int) -> tuple[Any, ...]:
        self.events[event] = stream
        return (OK,)

    def _copy(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:
        sources, targets = self.host_memory, self.device_memory
        if kind == cudaMemcpyKind.cudaMemcpyDeviceToHost:
            sources, targets = targets, sources

        def copy() -> None:
            self._find(sources, source, size)
            self._find(targets, target, size)
            ctypes.memmove(target, source, size)
            self.returned_bytes += size * (kind == cudaMemcpyKind.cudaMemcpyDeviceToHost)

        assert all((self._find(sources, source, size), self._find(targets, target, size)))
        self.put(stream, copy)
        return (OK,)

    def _begin_capture(self, stream: int, mode: int) -> tuple[Any, ...]:
        if mode != cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
            raise Misuse("other lanes may not reserve memory under this mode")
        self.streams[stream].recording = []
        return (OK,)

    def _end_capture(self, stream: int) -> tuple[Any, ...]:
        queue = self.streams[stream]
        recording, queue.recording = queue.recording, None
        was_spoilt, queue.is_spoilt = queue.is_spoilt, False
        if recording is None or was_spoilt:
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None
        return self._add(self.graphs, recording)

    def _launch(self, graph: int, stream: int) -> tuple[Any, ...]:
        for work in self.executables[graph]:
            self.put(stream, work)
        return (OK,)
