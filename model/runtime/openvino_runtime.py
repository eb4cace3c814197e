"""OpenVINO on the CPU: fp32, bf16 if the processor has it, and quantised graphs."""

import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from numpy.typing import NDArray

from model.graphs import Precision
from model.package import ModelPackage
from model.runtime.base import (
    Interrupted,
    LaneShare,
    MissingRuntimeError,
    SharedGraphCache,
    UnusableRuntimeError,
    still_open,
)
from model.runtime.choice import RuntimeChoice
from model.runtime.graph_runtime import Arrays, GraphRuntime, is_large, joined, parts_of
from model.runtime.loaded_graphs import LoadedGraph, graph_digest
from model.runtime.machine import INSTALL, this_hardware

_compiled = SharedGraphCache()
# Layers that do almost all of the work, and layers without arithmetic.
ROUNDED: Final = frozenset({"MatMul", "Const", "Parameter", "Result"})
LAYER: Final = re.compile(
    r'(<layer id="\d+" name="[^"]*" type="([^"]*)"[^>]*>)(.*?)(</layer>)', re.S
)
MARK: Final = '<attribute name="precise" version="0" />'


class OpenVinoRuntime(GraphRuntime):
    """Vision, text and heads, compiled by OpenVINO for the CPU.

    The lanes of a package share a compiled graph and so its weights. It has one stream per lane,
    and each lane has its own inference request.
    """

    name = "openvino"

    def __init__(self, package: ModelPackage, choice: RuntimeChoice, share: LaneShare) -> None:
        def open_graph(graph: LoadedGraph) -> OpenVinoGraph:
            path = package.file(graph.file)
            digest = graph_digest(package.manifest, graph.file)
            key = (path, digest, graph.precision, share)
            compiled = _compiled.take(key, partial(_compile, path, graph.precision, share))
            return OpenVinoGraph(compiled)

        super().__init__(package, choice, open_graph, is_lazy=share.is_lazy)


class OpenVinoGraph:
    """An inference request of a compiled graph, which other lanes may share."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._request: Any = compiled.create_infer_request()
        self._is_interrupted = False

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """Compute outputs; see `Graph.run`."""
        request = still_open(self._request)
        self._is_interrupted = False
        parts: list[dict[str, NDArray[Any]]] = []
        for part in parts_of(inputs):
            request.start_async(part)
            request.wait()
            if self._is_interrupted:
                raise Interrupted("the call was interrupted")
            # Results are views of the request's buffers, which the next call overwrites.
            parts.append({name: request.results[name].copy() for name in outputs})
        if is_large(inputs):
            self.release_idle_memory()
        return joined(parts)

    def interrupt(self) -> None:
        """End the running call after its current images; see `Graph.interrupt`.

        OpenVINO can cancel between two nodes, but its nodes then keep shapes of the cancelled call,
        and later calls with other shapes fail, crash or hang (seen in 2026.4).
        """
        self._is_interrupted = True

    def release_idle_memory(self) -> None:
        """Free the memory of calls of all lanes but those that compute."""
        compiled = self._compiled
        if compiled is not None:
            with suppress(RuntimeError):
                compiled.release_memory()

    def close(self) -> None:
        """Release the request and the compiled graph."""
        self._request = self._compiled = None


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry; MissingRuntimeError if it is not installed.

    Its import would post an event with a stored client id to an analytics host, from a process that
    it forks for that. Without the package `openvino_telemetry` it uses a stub of its own.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)  # imports of it fail from now on
    try:
        import openvino  # noqa: PLC0415 - only when this runtime is chosen
    except ImportError as error:
        raise MissingRuntimeError(f"the runtime 'openvino' {INSTALL['openvino']}") from error
    return openvino


def openvino_core() -> Any:
    """The one core of this process, which is never freed.

    On CPUs with AMX a core gives the first thread that compiles with it a signal stack. If several
    cores are freed in another order than they were made, that thread keeps a stack that is no
    longer mapped, and its next signal kills the process (OpenVINO 2026.4, by `sigaltstack`).

    Raises:
        MissingRuntimeError: OpenVINO is not installed.
    """
    return _only_one(import_openvino().Core)


@cache
def _only_one(kind: Callable[[], Any]) -> Any:
    return kind()


def _compile(path: Path, precision: Precision, share: LaneShare) -> Any:
    core = openvino_core()
    source: Any = path
    if precision == "bf16":
        source = read_for_bf16(core, path, import_openvino().serialize)
    compiled = core.compile_model(source, "CPU", _settings(precision, share))
    actual = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if precision in {"fp32", "bf16"} and actual != _hint(precision):
        raise UnusableRuntimeError(
            f"OpenVINO would compute in {actual} instead of {precision} on this CPU"
        )
    return compiled


def _settings(precision: Precision, share: LaneShare) -> dict[str, Any]:
    # No CACHE_DIR: OpenVINO 2026.4 identifies a cached graph by path, length and time, and was seen
    # to compute with the old weights of a file that had been replaced.
    return {
        "INFERENCE_NUM_THREADS": share.num_threads * share.num_lanes,
        "NUM_STREAMS": share.num_lanes,
        "INFERENCE_PRECISION_HINT": _hint(precision),
        # Pinning would put the threads of every lane on the same cores.
        "ENABLE_CPU_PINNING": False,
        # Otherwise OpenVINO quantises the activations that meet weights stored in 8 bits.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }


def _hint(precision: Precision) -> str:
    """The arithmetic of all nodes that are not quantised."""
    features = this_hardware().cpu_features
    if precision == "bf16" and "bf16" not in features:
        raise UnusableRuntimeError(
            "this CPU does not compute in bf16, only emulates it; choose fp32"
        )
    # An image of `bundled` in int8, with float32 and with bf16: 20.0 and 22.0 ms on an Intel Xeon
    # without AMX, 18.4 and 15.2 on an AMD EPYC.
    is_bf16 = precision == "bf16" or (precision == "int8" and "fast_bf16" in features)
    return "bf16" if is_bf16 else "f32"


def read_for_bf16(core: Any, path: Path, serialize: Callable[[Any, str, str], None]) -> Any:
    """Read a float32 graph so that only its matrix products are rounded to bf16.

    OpenVINO's hint alone rounds everything, also the sums that run through all blocks, and loses
    twice as much. Float32 elsewhere costs little time and brings back a third of the mask pixels
    that differ. Python cannot set the attribute that keeps it, but OpenVINO reads it from its own
    files: the graph is written, marked and read again. Weights are mapped from a deleted file,
    which is freed with the model.
    """
    with TemporaryDirectory(prefix="tipserve-openvino-") as folder:
        graph, weights = Path(folder) / "graph.xml", Path(folder) / "graph.bin"
        serialize(core.read_model(path), str(graph), str(weights))
        graph.write_text(hold_to_float32(graph.read_text(encoding="utf-8")), encoding="utf-8")
        return core.read_model(graph, weights)


def hold_to_float32(graph: str) -> str:
    """Mark every layer of an OpenVINO graph (XML) that must not be rounded."""
    return LAYER.sub(_mark, graph)


def _mark(layer: re.Match[str]) -> str:
    head, kind, body, tail = layer.groups()
    if kind in ROUNDED:
        return layer[0]
    if "<rt_info>" in body:
        return head + body.replace("<rt_info>", f"<rt_info>{MARK}", 1) + tail
    info = f"<rt_info>{MARK}</rt_info>"
    # The schema wants it after the layer's `data`, which some layers lack.
    data = re.search(r"<data [^>]*/>", body)
    end = data.end() if data else 0
    return f"{head}{body[:end]}{info}{body[end:]}{tail}"
