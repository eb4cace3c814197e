"""OpenVINO on the CPU, fp32.

Shapes: B batch, N patches, L tokens, D embedding width, H W pixels, 3 colour channels (RGB).
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.graphs import TEXT_FILE, VISION_FILE, DenseTask, Precision
from model.package import ModelPackage
from model.runtime.base import (
    Device,
    Interrupted,
    MissingRuntimeError,
    VisionOutput,
    check_pixels,
    check_tokens,
    still_open,
)
from model.runtime.choice import RuntimeChoice


class OpenVinoRuntime:
    """A vision and a text graph compiled by OpenVINO for the CPU."""

    name = "openvino"
    tasks: tuple[DenseTask, ...] = ()

    def __init__(self, package: ModelPackage, choice: RuntimeChoice, num_threads: int = 1) -> None:
        self.precision: Precision = choice.precision
        self.device: Device = choice.device
        self._patch_size = package.manifest.patch_size
        self._max_tokens = package.manifest.max_text_tokens
        self._vision: Any = _compile(package.file(VISION_FILE), num_threads)
        self._text: Any = _compile(package.file(TEXT_FILE), num_threads)
        self._is_interrupted = False

    def encode_images(self, pixels_B3HW: NDArray[np.float32]) -> VisionOutput:
        """Embed images of one size; see `Runtime.encode_images`."""
        grid_hw = check_pixels(pixels_B3HW, patch_size=self._patch_size)
        # Results are views of the request's buffers, which the next call overwrites.
        outputs = self._run(self._vision, {"pixel_values": pixels_B3HW})
        return VisionOutput(
            cls1_BD=outputs["cls1"].copy(),
            cls2_BD=outputs["cls2"].copy(),
            patches_BND=outputs["patch_embeddings"].copy(),
            values_BND=outputs["value_embeddings"].copy(),
            grid_hw=grid_hw,
        )

    def encode_texts(
        self, token_ids_BL: NDArray[np.int64], mask_BL: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Embed texts; see `Runtime.encode_texts`."""
        check_tokens(token_ids_BL, mask_BL, max_tokens=self._max_tokens)
        inputs = {"input_ids": token_ids_BL, "attention_mask": mask_BL}
        embeddings_BD: NDArray[np.float32] = self._run(self._text, inputs)["text_embeddings"].copy()
        return embeddings_BD

    def estimate(self, task: DenseTask, pixels_B3HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run a dense head; see `Runtime.estimate`."""
        raise ValueError(f"this package has no head for {task}")

    def interrupt(self) -> None:
        """End the running call between two of the graph's nodes; see `Runtime.interrupt`."""
        self._is_interrupted = True
        for request in (self._vision, self._text):
            if request is not None:
                request.cancel()

    def close(self) -> None:
        """Free both graphs."""
        self._vision = self._text = None

    def _run(self, graph: Any, inputs: Mapping[str, Any]) -> Any:
        request = still_open(graph)
        self._is_interrupted = False
        try:
            # What `infer` does, but only so can it be cancelled.
            request.start_async(inputs)
            request.wait()
        except RuntimeError as error:
            if self._is_interrupted:
                raise Interrupted("the call was interrupted") from error
            raise
        return request.results


def openvino_core() -> Any:
    """The one core of this process, which lives as long as it does.

    On CPUs with AMX a core gives the thread that first compiles with it a signal stack of its own.
    When several cores go in another order than they came, that thread is left with a stack that is
    no longer mapped, and its next signal kills the process (seen in OpenVINO 2026.4 and found in
    its calls of `sigaltstack`).

    Raises:
        MissingRuntimeError: OpenVINO is not installed.
    """
    try:
        import openvino  # noqa: PLC0415 - only when this runtime is chosen
    except ImportError as error:
        raise MissingRuntimeError(
            "the runtime 'openvino' needs OpenVINO: pip install 'tipserve[cpu]'"
        ) from error
    return _only_one(openvino.Core)


@cache
def _only_one(kind: Callable[[], Any]) -> Any:
    return kind()


def _compile(path: Path, num_threads: int) -> Any:
    settings = {
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        # Pinning would put every lane's threads on the same first cores.
        "ENABLE_CPU_PINNING": False,
    }
    return openvino_core().compile_model(path, "CPU", settings).create_infer_request()
