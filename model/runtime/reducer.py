"""Runs reductions by ONNX Runtime, on patches that lie in a device's memory.

A graph's outputs must be complete before: its runtime has waited for them. So a session needs not
the stream of the lane, and all lanes share it.

Shapes: N patches, D embedding width.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.pixel_labels import PIXEL_LABELS_FILE, objection
from model.reduction import ROWS_INPUT, Reduced, Reduction
from model.runtime.base import Device, SharedGraphCache
from model.runtime.graph_runtime import DeviceTensor
from model.runtime.machine import Provider
from model.runtime.onnx_runtime import (
    GPU_MEMORY,
    check_placement,
    import_onnxruntime,
    open_session,
)

LOGGER = logging.getLogger(__name__)
PROVIDERS: Final[Mapping[Device, Provider]] = {"cpu": "cpu", "gpu": "cuda"}
MEMORY: Final[Mapping[Device, str]] = {"cpu": "cpu", "gpu": GPU_MEMORY}
# Nodes that read the patches or more; only shapes may be read on the CPU.
HEAVY_NODES: Final = frozenset(
    {"ArgMax", "Div", "Gather", "Gemm", "MatMul", "Max", "Mul", "Pad", "ReduceSum", "Sqrt"}
)
# Memory of all lanes: twice what the largest reduction of each of two takes. Pieces are of powers
# of two, since pieces of each mask's own size would not fit the next one's.
CUDA_OPTIONS: Final = {
    "gpu_mem_limit": str(1 << 30),
    "arena_extend_strategy": "kNextPowerOfTwo",
}

_reducers = SharedGraphCache()


class OnnxReducer:
    """Sessions of reductions on one device. Thread-safe.

    Args:
        device: Where the patches are.
        sessions: By graph.
    """

    def __init__(self, device: Device, sessions: Mapping[Path, Any]) -> None:
        self._memory = MEMORY[device]
        self._sessions = sessions

    def run(self, reduction: Reduction, rows_ND: DeviceTensor) -> Reduced:
        """Compute a reduction; see `Reducer.run`.

        Raises:
            Exception: Of ONNX Runtime; `is_out_of_memory` knows the one for full memory.
        """
        session = self._sessions[reduction.graph]
        binding = session.io_binding()
        shape = list(rows_ND.shape)
        binding.bind_input(ROWS_INPUT, self._memory, 0, np.float32, shape, rows_ND.address)
        for name, array in reduction.inputs.items():
            binding.bind_cpu_input(name, array)
        for name in reduction.outputs:
            binding.bind_output(name)
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return dict(zip(reduction.outputs, binding.copy_outputs_to_cpu(), strict=True))

    def run_on_copy(self, reduction: Reduction, rows_ND: NDArray[np.float32]) -> Reduced:
        """Compute a reduction of patches in host memory, which are copied to the device."""
        copied = import_onnxruntime().OrtValue.ortvalue_from_numpy(rows_ND, self._memory, 0)
        return self.run(reduction, DeviceTensor(copied.data_ptr(), rows_ND.shape))


def open_reducer(device: Device) -> OnnxReducer | None:
    """The reducer of a device, which lanes share; None, with a warning, if it does not work there.

    It labels a made-up image first, which must come out as on the CPU and on a GPU take less time.
    """
    try:
        reducer: OnnxReducer = _reducers.take(device, lambda: _open(device))
        reason = objection(reducer.run_on_copy, must_be_faster=device == "gpu")
        if reason is None:
            return reducer
    except Exception as error:
        # ONNX Runtime has exceptions of its own, and some are plain RuntimeErrors.
        reason = str(error)
    LOGGER.warning("masks are made on the CPU and not on the GPU: %s", reason)
    return None


def _open(device: Device) -> OnnxReducer:
    provider = PROVIDERS[device]
    session = open_session(PIXEL_LABELS_FILE, provider, "fp32", 1, cuda=CUDA_OPTIONS)
    if device == "gpu":
        check_placement(session, provider, HEAVY_NODES)
    return OnnxReducer(device, {PIXEL_LABELS_FILE: session})
