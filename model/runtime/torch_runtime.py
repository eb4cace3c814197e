"""Run the package's weights in torch: the reference, and GPUs without another library.

torch keeps its number of threads per calling thread, so each call sets it for its own. Dense heads
are not available: a package has them as graphs only.

Shapes: B batch, N patches, L tokens, D embedding width, H W pixels, 3 colour channels (RGB).
"""

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.graphs import PATCH_OUTPUTS, DenseTask, PatchOutput, Precision
from model.package import ModelPackage
from model.runtime.base import (
    Device,
    InterruptibleCall,
    LaneShare,
    MissingRuntimeError,
    SharedGraphCache,
    UnusableRuntimeError,
    VisionOutput,
    check_pixels,
    check_tokens,
    still_open,
)
from model.runtime.choice import RuntimeChoice
from model.runtime.loaded_graphs import TORCH_FILE
from model.runtime.machine import INSTALL

DTYPES: Final[dict[Precision, str]] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DEVICES: Final[dict[Device, str]] = {"cpu": "cpu", "gpu": "cuda"}

_towers = SharedGraphCache()
_running = threading.local()


class TorchRuntime:
    """An encoder that the lanes of one package share.

    Args:
        package: Has the weights as safetensors.
        choice: Precision and device.
        share: Threads of one call on the CPU.
    """

    name = "torch"
    takes_bytes = False
    tasks: tuple[DenseTask, ...] = ()

    def __init__(self, package: ModelPackage, choice: RuntimeChoice, share: LaneShare) -> None:
        if choice.precision not in DTYPES:
            raise UnusableRuntimeError(f"torch computes in {', '.join(DTYPES)} here")
        self.precision: Precision = choice.precision
        self.device: Device = choice.device
        self._tf32 = choice.tf32
        self._patch_size = package.manifest.patch_size
        self._max_tokens = package.manifest.max_text_tokens
        self._num_threads = share.num_threads
        key = package.file(TORCH_FILE), package.manifest.files[TORCH_FILE].sha256
        self._key = (*key, choice.precision, choice.device)
        self._towers: Any = _towers.take(self._key, partial(_load, package, choice))
        self._call: InterruptibleCall | None = None

    def encode_images(
        self,
        pixels_B3HW: NDArray[np.float32],
        tasks: Sequence[DenseTask] = (),
        patch_outputs: Collection[PatchOutput] = PATCH_OUTPUTS,
    ) -> VisionOutput:
        """Embed images of one size; see `Runtime.encode_images`."""
        for task in tasks:
            self.estimate(task, pixels_B3HW)
        grid_hw = check_pixels(pixels_B3HW, patch_size=self._patch_size)
        towers = still_open(self._towers)
        with self._computing() as torch:
            pixels = torch.from_numpy(np.ascontiguousarray(pixels_B3HW))
            cls1, cls2, *patch_tensors = towers.vision(pixels.to(towers.device, towers.dtype))
            cls1_BD, cls2_BD = _array(cls1), _array(cls2)
            patches_BND, values_BND = (
                _array(tensor if name in patch_outputs else tensor[:, :0])
                for name, tensor in zip(PATCH_OUTPUTS, patch_tensors, strict=True)
            )
        return VisionOutput(
            cls1_BD=cls1_BD,
            cls2_BD=cls2_BD,
            patches_BND=patches_BND,
            values_BND=values_BND,
            grid_hw=grid_hw,
        )

    def encode_texts(
        self, token_ids_BL: NDArray[np.int64], mask_BL: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Embed texts; see `Runtime.encode_texts`."""
        check_tokens(token_ids_BL, mask_BL, max_tokens=self._max_tokens)
        towers = still_open(self._towers)
        with self._computing() as torch:
            ids, mask = (torch.from_numpy(a).to(towers.device) for a in (token_ids_BL, mask_BL))
            return _array(towers.text(ids, mask))

    def estimate(self, task: DenseTask, pixels_B3HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run a dense head; see `Runtime.estimate`."""
        raise ValueError(f"the runtime 'torch' has no head for {task}; choose onnx or openvino")

    def interrupt(self) -> None:
        """End the running call between two blocks; see `Runtime.interrupt`."""
        call = self._call
        if call is not None:
            call.is_interrupted = True

    def release_idle_memory(self) -> None:
        """Nothing: torch keeps no memory on a CPU, and its cache on a GPU is for all models."""

    def close(self) -> None:
        """Release the model; it is freed with its last user."""
        towers, self._towers = self._towers, None
        if towers is not None:
            _towers.remove(self._key, towers)

    @contextmanager
    def _computing(self) -> Iterator[Any]:
        """Give torch, set up for one interruptible call in this thread."""
        import torch  # noqa: PLC0415 - here already, by `_load`

        if self.device == "cpu" and torch.get_num_threads() != self._num_threads:
            torch.set_num_threads(self._num_threads)
        call = self._call = _running.call = InterruptibleCall()
        tf32 = self._tf32 or self.precision != "fp32"
        if self.device == "gpu":
            torch.backends.cuda.matmul.allow_tf32 = self._tf32
        try:
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
                yield torch
        finally:
            _running.call = None
        call.check()


def _array(tensor: Any) -> NDArray[np.float32]:
    """A float32 copy in host memory."""
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return np.ascontiguousarray(array)


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
