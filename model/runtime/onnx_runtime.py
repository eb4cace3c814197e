"""ONNX Runtime: the reference on the CPU, and NVIDIA GPUs through CUDA."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.foreground import ForegroundFinder
from model.general_words import GeneralWords
from model.graphs import FOREGROUND_FILE
from model.package import ModelPackage
from model.runtime.base import (
    Device,
    Interrupted,
    LaneShare,
    MissingRuntimeError,
    SharedGraphCache,
    UnusableRuntimeError,
    still_open,
)
from model.runtime.choice import RuntimeChoice
from model.runtime.graph_runtime import (
    PIXELS_AT_ONCE,
    Arrays,
    GraphRuntime,
    has_large_images,
    is_large,
    joined,
    parts_of,
)
from model.runtime.loaded_graphs import LoadedGraph, graph_digest
from model.runtime.machine import INSTALL, INSTALL_ONNX_GPU

LOG_ERRORS_ONLY: Final = 3
PROVIDERS: Final[dict[Device, str]] = {
    "cpu": "CPUExecutionProvider",
    "gpu": "CUDAExecutionProvider",
}
# Nodes that take nearly all of a transformer's time. Shapes and indices may run on the CPU.
# With the names that the optimiser and quantisation give them.
HEAVY_NODES: Final = frozenset(
    {"Attention", "Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm"}
    | {"LayerNormalization", "MatMul", "MultiHeadAttention", "SkipLayerNormalization", "Softmax"}
    | {"ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
    | {"MatMulNBits", "QAttention", "QGemm", "QLinearConv", "QLinearMatMul"}
)
# Types that inputs are cast to; inputs of other types are passed unchanged.
INPUT_TYPES: Final = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
# An option of one call: afterwards the arena frees what no call uses.
SHRINK: Final = ("memory.enable_memory_arena_shrinkage", "cpu:0")
SHARED_ARENA: Final = ("session.use_env_allocators", "1")
# Takes only what a call asks for, so that each block can be freed, also the first.
AS_REQUESTED: Final = {"arena_extend_strategy": 1}
# The arena keeps the memory of so many calls at once for later ones, 14 to 27 MiB each in the
# default model. Without, a call took 1.3 times the CPU time.
KEPT_CALLS: Final = 2
# An ONNX graph with one node, y = Abs(x), of float32 [n]. A call of it takes 6 us.
ABS_GRAPH: Final = bytes.fromhex(
    "08083a340a0b0a017812017922034162731201675a100a0178120b0a09080112050a0312016e62100a"
    "0179120b0a09080112050a0312016e42040a001011"
)
_sessions = SharedGraphCache()


class ProviderError(UnusableRuntimeError):
    """ONNX Runtime would compute on another device than requested."""


def import_onnxruntime() -> Any:
    """Import the library; MissingRuntimeError if it is not installed."""
    try:
        import onnxruntime  # noqa: PLC0415 - only when this runtime is chosen
    except ImportError as error:
        raise MissingRuntimeError(f"the runtime 'onnx' {INSTALL['onnx']}") from error
    return onnxruntime


def open_session(
    path: Path, device: Device, num_threads: int, *, has_arena: bool = True, tf32: bool = False
) -> Any:
    """Load a graph on a device, and on no other.

    If a GPU's libraries are missing, ONNX Runtime only logs a line and computes on the CPU, tens of
    times slower. Here that is an error.

    Args:
        path: The `.onnx` file.
        device: Where it computes.
        num_threads: CPU threads of one call.
        has_arena: Whether memory of calls on the CPU is kept for later calls.
        tf32: Whether a GPU may round factors of float32 products to 10 bits.

    Raises:
        MissingRuntimeError: ONNX Runtime is not installed, or was built without CUDA.
        ProviderError: CUDA does not work here.
    """
    onnxruntime = import_onnxruntime()
    options = _session_options(onnxruntime, num_threads)
    options.enable_cpu_mem_arena = has_arena
    if device == "cpu":
        if has_arena:
            shared_arena()
            options.add_session_config_entry(*SHARED_ARENA)
        return onnxruntime.InferenceSession(path, options, providers=[PROVIDERS["cpu"]])
    if PROVIDERS["gpu"] not in onnxruntime.get_available_providers():
        raise MissingRuntimeError(f"ONNX Runtime on a GPU {INSTALL_ONNX_GPU}")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Finds CUDA and cuDNN where pip has put them.
    onnxruntime.preload_dlls()
    cuda = {
        "use_tf32": str(int(tf32)),
        # Shapes vary; an exhaustive search for each would take longer than it saves.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    try:
        session = onnxruntime.InferenceSession(
            path, options, providers=[(PROVIDERS["gpu"], cuda), PROVIDERS["cpu"]], enable_fallback=0
        )
    except (RuntimeError, ValueError) as error:
        raise ProviderError(f"ONNX Runtime cannot use CUDA: {error}") from error
    check_placement(session)
    return session


def load_foreground(package: ModelPackage, words: GeneralWords | None) -> ForegroundFinder | None:
    """Finds the foreground; None if the package or the installation cannot."""
    if words is None or FOREGROUND_FILE not in package.manifest.files:
        return None
    try:
        # Without an arena: the memory of a call is free after it.
        session = open_session(package.file(FOREGROUND_FILE), "cpu", 1, has_arena=False)
    except MissingRuntimeError:
        return None

    def find_foreground(pixels_13HW: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(["foreground"], {"image": pixels_13HW})[0]
        return found

    return ForegroundFinder.of(find_foreground, words)


def check_placement(session: Any) -> None:
    """Check that a session and its heavy nodes run on the GPU; ProviderError if not."""
    used = list(session.get_providers())
    if used[:1] != [PROVIDERS["gpu"]]:
        raise ProviderError(
            f"ONNX Runtime could not start CUDA and would have computed by {', '.join(used)} "
            "instead. Its own message, in the log above, says why: most often the libraries of "
            "CUDA or cuDNN are missing or of another version, or the driver is older than they "
            "are. Fix that, or choose the device 'cpu'"
        )
    strays = sorted(_nodes_on_cpu(session) & HEAVY_NODES)
    if strays:
        raise ProviderError(
            f"ONNX Runtime leaves {', '.join(strays)} of this graph to the CPU, which would be "
            "slower than the CPU alone; choose another precision or runtime"
        )


def _nodes_on_cpu(session: Any) -> set[str]:
    """Types of nodes on the CPU; none if the library is too old to report them."""
    placed: Iterable[Any] = getattr(session, "get_provider_graph_assignment_info", tuple)()
    return {
        node.op_type
        for subgraph in placed
        if subgraph.ep_name == PROVIDERS["cpu"]
        for node in subgraph.get_nodes()
    }


def _session_options(onnxruntime: Any, num_threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    # Spinning threads would take cores from decoding and other sessions.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class SharedArena:
    """The memory of calls on the CPU, of all sessions of this process that have an arena.

    It keeps what calls have used for later ones, but not that of large calls, nor that of a burst
    of more than `KEPT_CALLS`. Thread-safe.
    """

    def __init__(self) -> None:
        library = import_onnxruntime()
        kind = library.OrtAllocatorType.ORT_ARENA_ALLOCATOR
        place = library.OrtMemoryInfo("Cpu", kind, 0, library.OrtMemType.DEFAULT)
        with suppress(RuntimeError):  # another library of this process has made one
            library.create_and_register_allocator(place, library.OrtArenaCfg(AS_REQUESTED))
        options = _session_options(library, num_threads=1)
        options.add_session_config_entry(*SHARED_ARENA)
        self._session = library.InferenceSession(ABS_GRAPH, options, providers=[PROVIDERS["cpu"]])
        self._lock = threading.Lock()
        self._num_running = self._most_running = 0

    @contextmanager
    def call(self, *, is_large: bool) -> Iterator[None]:
        """For one call; at its end, free what need not be kept."""
        with self._lock:
            self._num_running += 1
            self._most_running = max(self._most_running, self._num_running)
        try:
            yield
        finally:
            with self._lock:
                self._num_running -= 1
                ends_burst = not self._num_running and self._most_running > KEPT_CALLS
                if not self._num_running:
                    self._most_running = 0
            if is_large or ends_burst:
                self.shrink()

    def shrink(self) -> None:
        """Free what no call uses, by a call that gives an empty array, which lies in no block."""
        call = import_onnxruntime().RunOptions()
        call.add_run_config_entry(*SHRINK)
        self._session.run(["y"], {"x": np.zeros(0, np.float32)}, call)


class LargeCalls:
    """Bounds how many calls with large images run at once, each of which takes up to 175 MiB."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_running = 0

    @contextmanager
    def one_of(self, limit: int) -> Iterator[None]:
        """Wait until fewer than `limit` run, and be one of them."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_running < limit)
            self._num_running += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_running -= 1
                self._changed.notify_all()  # limits differ between models


large_calls = LargeCalls()
_arena_lock = threading.Lock()
_arenas: list[SharedArena] = []


def shared_arena() -> SharedArena:
    """The arena of this process, made on its first use. Thread-safe."""
    with _arena_lock:
        if not _arenas:
            _arenas.append(SharedArena())
        return _arenas[0]


class OnnxRuntime(GraphRuntime):
    """Vision, text and heads as sessions of ONNX Runtime.

    Lanes with one thread share their sessions and so the weights: such a call computes in the
    caller's thread. With more threads a session owns a thread pool, so each lane needs its own.
    """

    name = "onnx"

    def __init__(self, package: ModelPackage, choice: RuntimeChoice, share: LaneShare) -> None:
        device = choice.device
        is_shared = share.num_threads == 1 or device == "gpu"
        max_large = max(1, share.num_lanes // 2)

        def open_graph(graph: LoadedGraph) -> OnnxGraph:
            path = package.file(graph.file)
            digest = graph_digest(package.manifest, graph.file)
            # In a graph of lower precision, what is left in float32 may be rounded as well.
            tf32 = graph.precision != "fp32"
            key = (path, digest, device, tf32, share.num_threads)

            def load() -> Any:
                # Without its arena, images take more at their peak and 1.3 times the CPU time in
                # EfficientNet-Lite0. Texts are small: MiniLM takes 1.00 to 1.06 times the time, and
                # 64 texts of 64 tokens leave nothing instead of 150 MB.
                return open_session(
                    path, device, share.num_threads, has_arena=graph.part != "text", tf32=tf32
                )

            session = _sessions.take(key, load) if is_shared else load()
            return OnnxGraph(session, device, max_large=max_large)

        super().__init__(package, choice, open_graph, is_lazy=share.is_lazy)


class OnnxGraph:
    """A session, perhaps shared, for one call at a time, of which `max_large` take large images."""

    def __init__(self, session: Any, device: Device, *, max_large: int) -> None:
        self._session = session
        self._max_large = max_large
        self._types = {node.name: INPUT_TYPES.get(node.type) for node in session.get_inputs()}
        self._device = device
        has_arena = session.get_session_options().enable_cpu_mem_arena
        self._has_arena = device == "cpu" and bool(has_arena)
        self._call: Any = None

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """Compute outputs; see `Graph.run`."""
        session = still_open(self._session)
        fed = {
            name: array.astype(self._types[name] or array.dtype, copy=False)
            for name, array in inputs.items()
        }
        # Each call has its own options, so a late interruption meets no later call.
        call = self._call = import_onnxruntime().RunOptions()
        try:
            if self._device == "gpu":
                made = session.run(outputs, fed, call)
                named: Arrays = dict(zip(outputs, made, strict=True))
            else:
                waits = has_large_images(inputs)
                with large_calls.one_of(self._max_large) if waits else nullcontext():
                    parts = [
                        self._run_part(session, part, outputs, call=call) for part in parts_of(fed)
                    ]
                named = joined(parts)
        except Exception as error:
            if call.terminate:
                raise Interrupted("the call was interrupted") from error
            raise
        return {name: np.asarray(array, dtype=np.float32) for name, array in named.items()}

    def _run_part(
        self, session: Any, inputs: Arrays, outputs: Sequence[str], *, call: Any
    ) -> Arrays:
        """Compute a part of a batch, and copy it: a small array would keep a large block."""
        frees = is_large(inputs, PIXELS_AT_ONCE)
        with shared_arena().call(is_large=frees) if self._has_arena else nullcontext():
            made = session.run(outputs, inputs, call)
            copied = list(map(np.array, made))
            del made  # before the arena is shrunk
        return dict(zip(outputs, copied, strict=True))

    def interrupt(self) -> None:
        """End the running call; see `Graph.interrupt`."""
        if self._call is not None:
            self._call.terminate = True

    def release_idle_memory(self) -> None:
        """Free what the arena keeps, of all lanes; see `Graph.release_idle_memory`."""
        if self._has_arena:
            shared_arena().shrink()

    def close(self) -> None:
        """Release the session."""
        self._session = None
