"""ONNX Runtime: the reference on the CPU, and NVIDIA GPUs through CUDA or TensorRT."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.package import ModelPackage
from model.runtime.base import Interrupted, LaneShare, still_open
from model.runtime.choice import RuntimeChoice
from model.runtime.graph_runtime import Arrays, GraphRuntime
from model.runtime.libraries import Provider
from model.runtime.loaded_graphs import LoadedGraph
from model.runtime.onnx_session import import_onnxruntime, open_session
from model.runtime.shelf import Shelf

# NumPy's names of what a graph may want; what is not here goes in as it is.
INPUT_TYPES: Final = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
GPU_MEMORY: Final = "cuda"
MAX_KEPT_SHAPES: Final = 8

_sessions = Shelf()


class OnnxRuntime(GraphRuntime):
    """Vision, texts and heads as sessions of ONNX Runtime.

    A call of one thread computes in the caller's own, and a session takes calls from many: lanes of
    one thread share their sessions, and with them the weights. Others need threads of their own.
    """

    name = "onnx"

    def __init__(self, package: ModelPackage, choice: RuntimeChoice, share: LaneShare) -> None:
        provider: Provider = choice.provider or "cpu"
        is_shared = share.num_threads == 1 or provider != "cpu"

        def open_graph(graph: LoadedGraph) -> OnnxGraph:
            path = package.file(graph.file)
            digest = package.manifest.files[graph.file].sha256
            key = (path, digest, provider, graph.precision, share.num_threads)

            def load() -> Any:
                return open_session(path, provider, graph.precision, share.num_threads)

            if not is_shared:
                return OnnxGraph(load(), provider, lambda _: None)
            return OnnxGraph(
                _sessions.take(key, load), provider, lambda held: _sessions.remove(key, held)
            )

        super().__init__(package, choice, open_graph)


class OnnxGraph:
    """A session that runs one call at a time for its owner.

    Args:
        session: Perhaps shared.
        provider: Where it computes.
        let_go: Called with the session when it is closed.
    """

    def __init__(self, session: Any, provider: Provider, let_go: Callable[[Any], None]) -> None:
        self._session = session
        self._let_go = let_go
        self._types = {node.name: INPUT_TYPES.get(node.type) for node in session.get_inputs()}
        self._outputs = [node.name for node in session.get_outputs()]
        self._binding = None if provider == "cpu" else _Binding(session, self._outputs)
        self._call: Any = None

    def run(self, inputs: Arrays) -> Arrays:
        """Compute every output; see `Graph.run`."""
        session = still_open(self._session)
        fed = {name: _as_type(array, self._types[name]) for name, array in inputs.items()}
        # Each call has options of its own, so an interruption that comes late meets no later call.
        call = self._call = import_onnxruntime().RunOptions()
        try:
            if self._binding is None:
                arrays = session.run(self._outputs, fed, call)
            else:
                arrays = self._binding.run(fed, call)
        except Exception as error:
            if call.terminate:
                raise Interrupted("the call was interrupted") from error
            raise
        outputs = zip(self._outputs, arrays, strict=True)
        return {name: np.asarray(array, dtype=np.float32) for name, array in outputs}

    def interrupt(self) -> None:
        """End the running call; see `Graph.interrupt`."""
        if self._call is not None:
            self._call.terminate = True

    def close(self) -> None:
        """Let go of the session."""
        session, self._session, self._binding = self._session, None, None
        if session is not None:
            self._let_go(session)


class _Binding:
    """Inputs and outputs of a session in the GPU's memory, kept from call to call.

    One copy in and one copy out each; nothing is allocated for a shape that was there lately.
    """

    def __init__(self, session: Any, outputs: list[str]) -> None:
        self._session = session
        self._outputs = outputs
        self._kept: dict[tuple[Any, ...], dict[str, Any]] = {}

    def run(self, inputs: Arrays, call: Any) -> list[NDArray[Any]]:
        """Copy in, compute, copy out."""
        binding = self._session.io_binding()
        for name, value in self._on_gpu(inputs).items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, GPU_MEMORY)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding, call)
        binding.synchronize_outputs()
        arrays: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return arrays

    def _on_gpu(self, inputs: Arrays) -> dict[str, Any]:
        """The inputs' values in the buffers of their shapes."""
        key = tuple((name, array.shape, array.dtype.str) for name, array in inputs.items())
        buffers = self._kept.pop(key, None)
        if buffers is None:
            make = import_onnxruntime().OrtValue.ortvalue_from_numpy
            buffers = {name: make(array, GPU_MEMORY, 0) for name, array in inputs.items()}
            if len(self._kept) >= MAX_KEPT_SHAPES:
                self._kept.pop(next(iter(self._kept)))
        else:
            for name, array in inputs.items():
                buffers[name].update_inplace(np.ascontiguousarray(array))
        self._kept[key] = buffers  # at the end: the least lately used goes first
        return buffers


def _as_type(array: NDArray[Any], wanted: Any) -> NDArray[Any]:
    return array if wanted is None else array.astype(wanted, copy=False)
