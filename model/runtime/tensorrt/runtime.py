"""TensorRT on one GPU: engines in float32, bfloat16 or float16."""

import json
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.graphs import DENSE_TASKS, DenseTask, Part, Precision
from model.package import ModelPackage
from model.runtime.base import (
    Device,
    InterruptibleCall,
    LaneShare,
    VisionOutput,
    check_pixels,
    check_tokens,
    still_open,
)
from model.runtime.choice import RuntimeChoice
from model.runtime.tensorrt.cuda import GpuLibraries, device_facts, load_libraries
from model.runtime.tensorrt.engine_cache import EngineKey
from model.runtime.tensorrt.engines import ENGINES, keys_for, supply_engine
from model.runtime.tensorrt.graph_executor import GraphExecutor, LaneStream
from model.runtime.tensorrt.profiles import CACHE_ROOM, TensorRtOptions


class TensorRtRuntime:
    """A lane on a GPU, with an engine for the package's images, texts and heads."""

    name = "tensorrt"

    def __init__(
        self,
        package: ModelPackage,
        choice: RuntimeChoice,
        share: LaneShare | None = None,
        *,
        options: TensorRtOptions | None = None,
        load: Callable[[], GpuLibraries] = load_libraries,
    ) -> None:
        """Load the engines; building one that the cache lacks takes minutes.

        Args:
            package: The verified package.
            choice: Chosen runtime, with the precision of the vision graph.
            share: Lane's share, for the cache folder; threads do not matter on a GPU.
            options: Options of TensorRT; None for the defaults with that cache.
            load: Loads the libraries.

        Raises:
            MissingRuntimeError: TensorRT or cuda-python is not installed.
            GpuError: There is no usable GPU, or not enough of its memory.
            PackageError: The package has no graph of this precision.
            ValueError: Engines are not built in this precision.
        """
        self.precision: Precision = choice.precision
        self.device: Device = "gpu"
        self._patch_size = package.manifest.patch_size
        self._max_tokens = package.manifest.max_text_tokens
        self._call: InterruptibleCall | None = None
        self._executors: dict[Part, GraphExecutor] | None = {}
        libraries, options = load(), options or usual_options(share)
        device = device_facts(libraries, options.device_index)
        keys = keys_for(package, choice.precision, device=device, options=options)
        self.tasks: tuple[DenseTask, ...] = tuple(
            task for task in DENSE_TASKS if any(key.part == task for key in keys)
        )
        with ExitStack() as cleanup:
            self._lane = LaneStream(libraries, options.device_index)
            cleanup.callback(self._lane.close)
            for key in keys:
                supply = partial(supply_engine, libraries, package, key, options)
                # The executor holds the engine, which leaves the GPU with its last executor.
                engine = ENGINES.take(_shared_key(libraries, options, key), supply)
                executor = self._executors[key.part] = GraphExecutor(self._lane, engine, options)
                cleanup.callback(executor.forget)
            self._cleanup = cleanup.pop_all()

    def encode_images(self, pixels_B3HW: NDArray[np.float32]) -> VisionOutput:
        """Embed images of one size; see `Runtime.encode_images`."""
        grid_hw = check_pixels(pixels_B3HW, patch_size=self._patch_size)
        outputs = self._run("vision", {"pixel_values": pixels_B3HW})
        return VisionOutput(
            cls1_BD=outputs["cls1"],
            cls2_BD=outputs["cls2"],
            patches_BND=outputs["patch_embeddings"],
            values_BND=outputs["value_embeddings"],
            grid_hw=grid_hw,
        )

    def encode_texts(
        self, token_ids_BL: NDArray[np.int64], mask_BL: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Embed texts; see `Runtime.encode_texts`."""
        check_tokens(token_ids_BL, mask_BL, max_tokens=self._max_tokens)
        inputs = {"input_ids": token_ids_BL, "attention_mask": mask_BL}
        return self._run("text", inputs)["text_embeddings"]

    def estimate(self, task: DenseTask, pixels_B3HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run a dense head; see `Runtime.estimate`."""
        if task not in self.tasks:
            raise ValueError(f"this package has no head for {task}")
        check_pixels(pixels_B3HW, patch_size=2 * self._patch_size)
        (output,) = self._run(task, {"pixel_values": pixels_B3HW}).values()
        return output

    def interrupt(self) -> None:
        """End the running call before its next run; see `Runtime.interrupt`.

        CUDA cannot stop started kernels, which use the lane's memory. So the current run of some
        milliseconds finishes and its result is dropped; further runs of a large batch are skipped.
        """
        call = self._call
        if call is not None:
            call.is_interrupted = True

    def close(self) -> None:
        """Free this lane; the engines leave the GPU with their last lane."""
        self._executors = None
        self._cleanup.close()

    def _run(self, part: Part, inputs: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
        executor = still_open(self._executors)[part]
        call = self._call = InterruptibleCall()
        try:
            self._lane.use_device()
            outputs: dict[str, NDArray[np.float32]] = executor.run(inputs, check=call.check)
            return outputs
        finally:
            self._call = None


def usual_options(share: LaneShare | None) -> TensorRtOptions:
    """The defaults, with the cache of `python -m model build-engine`."""
    if share is None or share.cache is None:
        return TensorRtOptions()
    return TensorRtOptions(cache_folder=share.cache / CACHE_ROOM)


def _shared_key(libraries: GpuLibraries, options: TensorRtOptions, key: EngineKey) -> Hashable:
    """Equal for lanes of this process that may share an engine."""
    return id(libraries.trt), options.device_index, json.dumps(key.facts(), sort_keys=True)
