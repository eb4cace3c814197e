"""TensorRT on one GPU: engines in float32, bfloat16 or float16."""

import json
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.graphs import DENSE_TASKS, DenseTask, Part, Precision
from model.package import ModelPackage
from model.runtime.base import (
    Device,
    Interrupted,
    LaneShare,
    VisionOutput,
    check_pixels,
    check_tokens,
    still_open,
)
from model.runtime.choice import RuntimeChoice
from model.runtime.tensorrt.cuda import Libraries, device_facts, load_libraries
from model.runtime.tensorrt.engine_cache import EngineKey
from model.runtime.tensorrt.engines import POOL, keys_for, supply_engine
from model.runtime.tensorrt.graph_executor import GraphExecutor, LaneStream
from model.runtime.tensorrt.profiles import CACHE_ROOM, TensorRtOptions


@dataclass(slots=True, eq=False)
class _Call:
    """One call, which another thread may want to end."""

    is_interrupted: bool = False

    def check(self) -> None:
        """Raise where it was ended."""
        if self.is_interrupted:
            raise Interrupted("the call was interrupted")


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
        load: Callable[[], Libraries] = load_libraries,
    ) -> None:
        """Load the engines, built first where the cache has none, which takes minutes.

        Args:
            package: Opened and verified.
            choice: Gives the precision of the vision graph.
            share: Gives the cache; threads do not count, the GPU computes.
            options: How engines are found and run; by default as usual, in that cache.
            load: Gives the libraries.

        Raises:
            MissingRuntimeError: TensorRT or cuda-python is not installed.
            GpuError: There is no usable GPU, or too little of its memory.
            PackageError: The package has no graph of this precision.
            ValueError: A precision that engines are not built in.
        """
        self.precision: Precision = choice.precision
        self.device: Device = "gpu"
        self._patch_size = package.manifest.patch_size
        self._max_tokens = package.manifest.max_text_tokens
        self._call: _Call | None = None
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
                shared = _shared_name(libraries, options, key)
                engine = POOL.acquire(shared, supply)
                cleanup.callback(POOL.release, shared)
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

        A GPU does not stop kernels that were started, and their memory is in use until they end.
        So a run under way, some milliseconds, is waited for and its result dropped; of a batch that
        takes several runs the others are left out.
        """
        call = self._call
        if call is not None:
            call.is_interrupted = True

    def close(self) -> None:
        """Free this lane; the engines leave the GPU with the last lane."""
        self._executors = None
        self._cleanup.close()

    def _run(self, part: Part, inputs: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
        executor = still_open(self._executors)[part]
        # Each call has a flag of its own, so an interruption that comes late meets no later call.
        call = self._call = _Call()
        try:
            self._lane.use_device()
            outputs: dict[str, NDArray[np.float32]] = executor.run(inputs, check=call.check)
            return outputs
        finally:
            self._call = None


def usual_options(share: LaneShare | None) -> TensorRtOptions:
    """The defaults, with the engines where `python -m model build-engine` puts them."""
    if share is None or share.cache is None:
        return TensorRtOptions()
    return TensorRtOptions(cache_folder=share.cache / CACHE_ROOM)


def _shared_name(libraries: Libraries, options: TensorRtOptions, key: EngineKey) -> Hashable:
    """What lanes of this process that may share an engine have in common."""
    return id(libraries.trt), options.device_index, json.dumps(key.facts(), sort_keys=True)
