"""The compared libraries: each maps a NumPy batch of images to NumPy outputs.

The round trip is what the service sees. Where the library allows it, the computation alone is timed
as well, with inputs and outputs on the device.

Shapes: B batch, H W pixels, 3 colour channels.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.on_gpu.arithmetic import torch_type
from benchmarks.on_gpu.place import Place
from model.graphs import Precision
from model.package import ModelPackage
from model.runtime.base import MissingRuntimeError, Runtime
from model.runtime.choice import RuntimeChoice
from model.runtime.load import load_chosen
from model.runtime.tensorrt.profiles import EngineOptions, TensorRtOptions
from model.runtime.tensorrt.runtime import TensorRtRuntime

Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One implementation of the vision tower.

    Attributes:
        encode: Computes all four outputs of a batch, NumPy to NumPy.
        compute_s: Seconds of a number of consecutive runs on the device without copies; None if the
        library does not allow it.
        close: Frees the resources.
    """

    encode: Callable[[Pixels], object]
    compute_s: Callable[[Pixels, int], float] | None
    close: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Inputs for building a contestant.

    Attributes:
        package: Graphs and weights.
        place: Device to run on.
        max_batch: Largest batch size.
        work: Folder for engines.
    """

    package: ModelPackage
    place: Place
    max_batch: int
    work: Path


def torch_eager(setup: Setup, precision: Precision) -> Contestant:
    """Torch in eager mode, with its fused attention."""
    return _torch(setup, precision, lambda function: function)


def torch_compiled(setup: Setup, precision: Precision) -> Contestant:
    """torch.compile, recompiled for each batch size."""
    import torch  # noqa: PLC0415 - so that the script can say that it is missing

    mode = "max-autotune" if setup.place.is_gpu else "default"
    return _torch(setup, precision, lambda f: torch.compile(f, dynamic=False, mode=mode))


def onnx_runtime(setup: Setup, precision: Precision) -> Contestant:
    """ONNX Runtime, through CUDA or on the CPU."""
    choice = RuntimeChoice(
        runtime="onnx",
        precision=precision,
        device="gpu" if setup.place.is_gpu else "cpu",
        provider="cuda" if setup.place.is_gpu else "cpu",
        reason="the benchmark asks for it",
    )
    runtime: Runtime = load_chosen(setup.package, choice)
    return Contestant(encode=runtime.encode_images, compute_s=None, close=runtime.close)


def tensorrt(setup: Setup, precision: Precision) -> Contestant:
    """TensorRT, with this project's engines."""
    runtime = tensorrt_lane(setup, precision)

    def compute_s(pixels_B3HW: Pixels, times: int) -> float:
        runtime.encode_images(pixels_B3HW)
        # Private access: only this benchmark needs a run without copies.
        executor: Any = cast("Any", runtime)._executors["vision"]
        shape = next(reversed(executor._prepared.values()))
        lane = executor._lane
        began = time.perf_counter()
        for _ in range(times):
            shape.context.execute_async_v3(lane.handle)
        lane.wait()
        return time.perf_counter() - began

    return Contestant(encode=runtime.encode_images, compute_s=compute_s, close=runtime.close)


def tensorrt_lane(setup: Setup, precision: Precision) -> TensorRtRuntime:
    """Return a lane whose engine supports all batch sizes of the benchmark."""
    choice = RuntimeChoice(
        runtime="tensorrt", precision=precision, device="gpu", reason="the benchmark asks for it"
    )
    engine = EngineOptions(max_batch=setup.max_batch, best_batch=min(16, setup.max_batch))
    options = TensorRtOptions(engine=engine, cache_folder=setup.work / "engines")
    return TensorRtRuntime(setup.package, choice, options=options)


def _torch(
    setup: Setup, precision: Precision, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Contestant:
    try:
        import torch  # noqa: PLC0415 - so that the script can say that it is missing
        from transformers import Tipsv2Model  # noqa: PLC0415

        from model.features import vision_features  # noqa: PLC0415 - needs both
    except ImportError as error:
        raise MissingRuntimeError("torch is missing: pip install 'tipserve[torch]'") from error
    device, kind = setup.place.device, torch_type(precision)
    model: Any = Tipsv2Model.from_pretrained(setup.package.path, dtype=kind, local_files_only=True)
    model.set_attn_implementation("sdpa")
    model = model.to(device).eval()

    def forward(pixels: Any) -> Any:
        features = vision_features(model, pixels)
        return features.cls1_BD, features.cls2_BD, features.patches_BND, features.values_BND

    compute = wrap(forward)

    @torch.inference_mode()
    def encode(pixels_B3HW: Pixels) -> list[Pixels]:
        outputs = compute(torch.from_numpy(pixels_B3HW).to(device, kind))
        return [output.float().cpu().numpy() for output in outputs]

    @torch.inference_mode()
    def compute_s(pixels_B3HW: Pixels, times: int) -> float:
        pixels = torch.from_numpy(pixels_B3HW).to(device, kind)
        compute(pixels)
        _finish(device)
        began = time.perf_counter()
        for _ in range(times):
            compute(pixels)
        _finish(device)
        return time.perf_counter() - began

    return Contestant(encode=encode, compute_s=compute_s, close=lambda: _free(device))


def _finish(device: str) -> None:
    if device == "cuda":
        import torch  # noqa: PLC0415 - as above

        torch.cuda.synchronize()


def _free(device: str) -> None:
    import torch  # noqa: PLC0415 - as above

    torch.compiler.reset()
    if device == "cuda":
        torch.cuda.empty_cache()


CONTESTANTS: dict[str, Callable[[Setup, Precision], Contestant]] = {
    "tensorrt": tensorrt,
    "torch-compile": torch_compiled,
    "torch-eager": torch_eager,
    "onnx": onnx_runtime,
}
