"""ONNX Runtime on the CPU: the reference runtime, fp32.

Shapes: B batch, N patches, L tokens, D embedding width, H W pixels, 3 colour channels (RGB).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.graphs import TEXT_FILE, VISION_FILE, VISION_OUTPUTS, DenseTask, Precision
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

LOG_ERRORS_ONLY = 3


class OnnxRuntime:
    """A vision and a text session on ONNX Runtime's CPU provider."""

    name = "onnx"
    tasks: tuple[DenseTask, ...] = ()

    def __init__(self, package: ModelPackage, choice: RuntimeChoice, num_threads: int = 1) -> None:
        self.precision: Precision = choice.precision
        self.device: Device = choice.device
        self._patch_size = package.manifest.patch_size
        self._max_tokens = package.manifest.max_text_tokens
        self._vision: Any = _session(package.file(VISION_FILE), num_threads)
        self._text: Any = _session(package.file(TEXT_FILE), num_threads)
        self._call: Any = None

    def encode_images(self, pixels_B3HW: NDArray[np.float32]) -> VisionOutput:
        """Embed images of one size; see `Runtime.encode_images`."""
        grid_hw = check_pixels(pixels_B3HW, patch_size=self._patch_size)
        cls1_BD, cls2_BD, patches_BND, values_BND = self._run(
            self._vision, VISION_OUTPUTS, {"pixel_values": pixels_B3HW}
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
        inputs = {"input_ids": token_ids_BL, "attention_mask": mask_BL}
        embeddings_BD: NDArray[np.float32]
        (embeddings_BD,) = self._run(self._text, ("text_embeddings",), inputs)
        return embeddings_BD

    def estimate(self, task: DenseTask, pixels_B3HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run a dense head; see `Runtime.estimate`."""
        raise ValueError(f"this package has no head for {task}")

    def interrupt(self) -> None:
        """End the running call between two of the graph's nodes; see `Runtime.interrupt`."""
        if self._call is not None:
            self._call.terminate = True

    def close(self) -> None:
        """Free both sessions."""
        self._vision = self._text = None

    def _run(self, graph: Any, outputs: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
        session = still_open(graph)
        # Each call has options of its own, so an interruption that comes late meets no later call.
        call = self._call = _run_options()
        try:
            arrays: list[Any] = session.run(list(outputs), inputs, call)
        except Exception as error:
            if call.terminate:
                raise Interrupted("the call was interrupted") from error
            raise
        return arrays


def _run_options() -> Any:
    import onnxruntime  # noqa: PLC0415 - here already, by `_session`

    return onnxruntime.RunOptions()


def _session(path: Path, num_threads: int) -> Any:
    try:
        import onnxruntime  # noqa: PLC0415 - only when this runtime is chosen
    except ImportError as error:
        raise MissingRuntimeError(
            "the runtime 'onnx' needs ONNX Runtime: pip install 'tipserve[cpu]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    # Spinning threads would burn the cores that decoding and other sessions need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
