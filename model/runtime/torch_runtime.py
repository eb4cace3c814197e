"""Run the package's weights in torch: the reference, and GPUs without another library.

torch keeps its number of threads per calling thread, so each call sets it for its own. Dense heads
are not available: a package has them as graphs only.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from model.graphs import TEXT_OUTPUTS, VISION_OUTPUTS, Part, Precision
from model.manifest import TORCH_FILE
from model.package import ModelPackage
from model.runtime.base import (
    Device,
    InterruptibleCall,
    LaneShare,
    MissingRuntimeError,
    SharedGraphCache,
    UnusableRuntimeError,
    still_open,
)
from model.runtime.choice import RuntimeChoice
from model.runtime.graph_runtime import Arrays, GraphRuntime
from model.runtime.loaded_graphs import LoadedGraph
from model.runtime.machine import INSTALL

DTYPES: Final[dict[Precision, str]] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DEVICES: Final[dict[Device, str]] = {"cpu": "cpu", "gpu": "cuda"}

_towers = SharedGraphCache()
_running = threading.local()


class TorchRuntime(GraphRuntime):
    """Vision and text by an encoder that the lanes of one package share."""

    name = "torch"

    def __init__(self, package: ModelPackage, choice: RuntimeChoice, share: LaneShare) -> None:
        if choice.precision not in DTYPES:
            raise UnusableRuntimeError(f"torch computes in {', '.join(DTYPES)} here")
        key = (
            package.file(TORCH_FILE),
            package.manifest.files[TORCH_FILE].sha256,
            choice.precision,
            choice.device,
        )

        def open_graph(graph: LoadedGraph) -> TorchGraph:
            towers = _towers.take(key, partial(_load, package, choice))
            return TorchGraph(graph.part, towers, num_threads=share.num_threads)

        super().__init__(package, choice, open_graph)


class TorchGraph:
    """One tower, perhaps shared with other lanes, used for one call at a time."""

    def __init__(self, part: Part, towers: "_Towers", *, num_threads: int) -> None:
        self._part, self._num_threads = part, num_threads
        self._towers: _Towers | None = towers
        self._call: InterruptibleCall | None = None

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """Compute outputs; see `Graph.run`."""
        towers: _Towers = still_open(self._towers)
        with self._computing(towers) as torch:
            given = [torch.from_numpy(np.ascontiguousarray(a)) for a in inputs.values()]
            if self._part == "vision":
                made = towers.vision(given[0].to(towers.device, towers.dtype))
                named = dict(zip(VISION_OUTPUTS, made, strict=True))
            else:
                made = towers.text(*(tensor.to(towers.device) for tensor in given))
                named = dict(zip(TEXT_OUTPUTS, [made], strict=True))
            return {
                name: np.ascontiguousarray(named[name].float().cpu().numpy()) for name in outputs
            }

    def interrupt(self) -> None:
        """End the running call between two blocks; see `Graph.interrupt`."""
        call = self._call
        if call is not None:
            call.is_interrupted = True

    def release_idle_memory(self) -> None:
        """Nothing: torch keeps no memory on a CPU, and its cache on a GPU is for all models."""

    def close(self) -> None:
        """Release the model; it is freed with its last user."""
        self._towers = None

    @contextmanager
    def _computing(self, towers: "_Towers") -> Iterator[Any]:
        """Give torch, set up for one interruptible call in this thread."""
        import torch  # noqa: PLC0415 - here already, by `_load`

        if towers.device == "cpu" and torch.get_num_threads() != self._num_threads:
            torch.set_num_threads(self._num_threads)
        call = self._call = _running.call = InterruptibleCall()
        # In lower precision, what is left in float32 may be rounded as well.
        tf32 = towers.dtype != torch.float32
        try:
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
                yield torch
        finally:
            _running.call = None
        call.check()


def _check_call(*_: Any) -> None:
    """Runs before each block, and ends this thread's call if it was interrupted."""
    call: InterruptibleCall | None = getattr(_running, "call", None)
    if call is not None:
        call.check()


@dataclass(eq=False, kw_only=True)
class _Towers:
    """Both towers of an encoder on one device; compared and shared by identity."""

    vision: Any
    text: Any
    device: str
    dtype: Any


def _load(package: ModelPackage, choice: RuntimeChoice) -> _Towers:
    """Load the encoder's towers; their blocks check for interruption."""
    try:
        import torch  # noqa: PLC0415 - only when this runtime is chosen

        from model.encoder import EncoderError, load_encoder  # noqa: PLC0415
    except ImportError as error:
        raise MissingRuntimeError(f"the runtime 'torch' {INSTALL['torch']}") from error
    if choice.device == "gpu" and not torch.cuda.is_available():
        raise UnusableRuntimeError(
            "torch finds no GPU that it can use: it was built without CUDA, or its CUDA is newer "
            "than the driver; choose another runtime or the device 'cpu'"
        )
    try:
        encoder = load_encoder(package.path)
    except EncoderError as error:
        raise UnusableRuntimeError(str(error)) from error
    device, dtype = DEVICES[choice.device], getattr(torch, DTYPES[choice.precision])
    towers = [tower.to(device, dtype) for tower in (encoder.vision, encoder.text)]
    for tower in towers:
        tower.requires_grad_(False)
        for module in tower.modules():
            if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
                for block in module:
                    block.register_forward_pre_hook(_check_call)
    return _Towers(vision=towers[0], text=towers[1], device=device, dtype=dtype)
