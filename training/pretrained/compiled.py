"""Frozen networks in OpenVINO, which takes a tenth of torch's time for depthwise convolutions."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.runtime.openvino_runtime import import_openvino, openvino_core

# From an input of one shape to the outputs.
Compiled = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], ...]]


def compile_network(network: nn.Module, shape: Sequence[int], *, num_threads: int = 1) -> Compiled:
    """Compile a network for one shape, which is faster than a dynamic shape.

    Torch's tracer must be able to follow it; it cannot follow a Tipsv2Model's position embeddings.
    """
    # OpenVINO still uses torch's deprecated tracer, which cannot work under a step's autocast.
    with warnings.catch_warnings(), torch.autocast("cpu", enabled=False):
        warnings.simplefilter("ignore", DeprecationWarning)
        converted: Any = import_openvino().convert_model(
            network.eval(), example_input=torch.zeros(*shape)
        )
    converted.reshape(list(shape))
    options = {"INFERENCE_NUM_THREADS": num_threads}
    compiled = openvino_core().compile_model(converted, "CPU", options)

    def run(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        return tuple(output.copy() for output in compiled(values).to_tuple())

    return run


def compile_for_images(
    network: nn.Module, size: int
) -> Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], ...]]:
    """Likewise for one square image, uint8 [S, S, 3]; the outputs are those of the image."""
    run = compile_network(network, (1, 3, size, size))

    def run_image(pixels_SS3: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        pixels_13SS = np.ascontiguousarray(pixels_SS3.transpose(2, 0, 1)[None], np.float32)
        pixels_13SS /= np.float32(255)
        return tuple(output[0] for output in run(pixels_13SS))

    return run_image
