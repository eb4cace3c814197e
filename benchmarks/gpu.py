"""Images per second on one GPU: TensorRT, torch.compile, torch, ONNX Runtime, and the service.

Run: python -m benchmarks.gpu [--variants b14,l14] [--sides 224,448] [--batches 1,8,64]
     [--precisions bf16,fp16] [--work FOLDER] [--json FILE]

Models have random weights and are exported into the folder first, which takes minutes each. What
cannot run becomes a note. `mfu` is the share of the best measured matrix product of the precision.
`--cpu-tiny` runs everything on the CPU with a tiny model, to test the script.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import photo_like_jpeg, rest_clients, rest_request, send
from benchmarks.random_model import TINY, random_package
from model.graphs import Precision
from model.package import ModelPackage
from model.runtime.base import LaneShare
from model.runtime.choice import RuntimeChoice
from model.runtime.load import load_chosen
from model.runtime.tensorrt.runtime import TensorRtRuntime
from tests.processes.server import start_server

Row = dict[str, Any]
Encode = Callable[[NDArray[np.float32]], object]
# The service's names; it does not serve torch.compile.
SERVED: Final = {"tensorrt": "tensorrt", "onnx": "onnx", "torch": "torch"}
GEMM_SIDES: Final = (1024, 4096, 8192, 16384)
WARM_UP_RUNS, MIN_RUNS = 3, 5


class Setup(NamedTuple):
    """What a contestant is built from."""

    package: ModelPackage
    is_gpu: bool
    max_batch: int
    work: Path

    @property
    def device(self) -> str:
        """The device's name in torch."""
        return "cuda" if self.is_gpu else "cpu"


def tensorrt(setup: Setup, precision: Precision) -> Encode:
    """TensorRT with this project's engines."""
    choice = RuntimeChoice(
        runtime="tensorrt", precision=precision, device="gpu", reason="benchmark"
    )
    return TensorRtRuntime(setup.package, choice, LaneShare(cache=setup.work)).encode_images


def onnx_runtime(setup: Setup, precision: Precision) -> Encode:
    """ONNX Runtime, on CUDA or on the CPU."""
    choice = RuntimeChoice(
        runtime="onnx",
        precision=precision,
        device="gpu" if setup.is_gpu else "cpu",
        reason="benchmark",
    )
    return load_chosen(setup.package, choice).encode_images


def in_torch(setup: Setup, precision: Precision, *, is_compiled: bool) -> Encode:
    """Torch with its fused attention, eager or compiled for each batch size."""
    import torch  # noqa: PLC0415 - so that the script can say that it is missing
    from transformers import Tipsv2Model  # noqa: PLC0415

    from model.features import vision_features  # noqa: PLC0415 - needs both

    kind = torch_type(precision)
    model: Any = Tipsv2Model.from_pretrained(setup.package.path, dtype=kind, local_files_only=True)
    model.set_attn_implementation("sdpa")
    model = model.to(setup.device).eval()

    def forward(pixels: Any) -> Any:
        features = vision_features(model, pixels)
        return features.cls1_BD, features.cls2_BD, features.patches_BND, features.values_BND

    compute = torch.compile(forward, dynamic=False) if is_compiled else forward

    @torch.inference_mode()
    def encode(pixels_B3HW: NDArray[np.float32]) -> object:
        outputs = compute(torch.from_numpy(pixels_B3HW).to(setup.device, kind))
        return [output.float().cpu().numpy() for output in outputs]

    return encode


CONTESTANTS: Final[dict[str, Callable[[Setup, Precision], Encode]]] = {
    "tensorrt": tensorrt,
    "torch-compile": partial(in_torch, is_compiled=True),
    "torch": partial(in_torch, is_compiled=False),
    "onnx": onnx_runtime,
}


def torch_type(precision: str) -> Any:
    """Return the torch dtype of a precision."""
    import torch  # noqa: PLC0415 - so that the script can say that it is missing

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def timed(run: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Median and 95th percentile of the seconds of a function that returns when it is done."""
    for _ in range(WARM_UP_RUNS):
        run()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < MIN_RUNS or time.perf_counter() < until:
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    taken.sort()
    return taken[len(taken) // 2], taken[int(0.95 * (len(taken) - 1))]


def peak_flops(precision: str, device: str, sides: Sequence[int], seconds: float) -> float:
    """Operations a second of the best square product."""
    import torch  # noqa: PLC0415 - as above

    best = 0.0
    for side in sides:
        left = torch.randn(side, side, device=device, dtype=torch_type(precision))
        middle_s, _ = timed(lambda left=left: (left @ left)[0, 0].item(), seconds)  # type: ignore[misc]
        best = max(best, 2 * side**3 / middle_s)
    return best


def flops_per_image(package: ModelPackage, side: int) -> int:
    """Operations of all four vision outputs of one image; a multiply-add counts as two."""
    import torch  # noqa: PLC0415 - as above
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415
    from transformers import Tipsv2Config, Tipsv2Model  # noqa: PLC0415

    from model.features import vision_features  # noqa: PLC0415

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = Tipsv2Model(Tipsv2Config.from_pretrained(package.path)).eval()
        vision_features(model, torch.empty(1, 3, side, side))
    return int(counter.get_total_flops())


def encoders(setup: Setup, options: argparse.Namespace, side: int) -> Iterator[Row]:
    """A row for each library, precision and batch: the round trip from NumPy to NumPy."""
    flops = flops_per_image(setup.package, side)
    for precision in options.precisions:
        sides = GEMM_SIDES if setup.is_gpu else (256,)
        peak = peak_flops(precision, setup.device, sides, options.seconds)
        for name in options.contestants:
            what: Row = {"side": side, "contestant": name, "precision": precision}
            try:
                encode = CONTESTANTS[name](setup, precision)
                for batch in options.batches:
                    pixels_B3HW = np.full((batch, 3, side, side), 0.5, np.float32)
                    middle_s, late_s = timed(partial(encode, pixels_B3HW), options.seconds)
                    yield what | {
                        "batch": batch,
                        "images_per_s": batch / middle_s,
                        "p50_ms": 1000 * middle_s,
                        "p95_ms": 1000 * late_s,
                        "mfu": flops * batch / middle_s / peak,
                    }
            # Any failure becomes a row with the reason, and the next one is measured.
            except Exception as error:
                yield what | {"note": f"{type(error).__name__}: {error}"}


def served(setup: Setup, options: argparse.Namespace, side: int) -> Iterator[Row]:
    """A row for each runtime of the service: its images per second against the bare runtime's."""
    num_lanes = 2 if setup.is_gpu else 1
    for name in set(options.contestants) & {*SERVED}:
        for precision in options.precisions:
            what: Row = {"side": side, "contestant": name, "precision": precision}
            flags = [f"--model={setup.package.path}", f"--runtime={SERVED[name]}"]
            flags += [f"--lanes={num_lanes}", f"--precision={precision}", "--image-cache-bytes=0"]
            try:
                encodes = [CONTESTANTS[name](setup, precision) for _ in range(num_lanes)]
                bare = bare_rate(encodes, setup.max_batch, side, options.seconds)
                with start_server(*flags) as service:
                    num_clients = 2 * num_lanes * setup.max_batch
                    port = service.ports["http"]
                    rate = asyncio.run(ask(port, num_clients, side, options.seconds))
                yield what | {"bare_images_per_s": bare, "images_per_s": rate, "ratio": rate / bare}
            except Exception as error:
                yield what | {"note": f"{type(error).__name__}: {error}"}


def bare_rate(encodes: Sequence[Encode], batch: int, side: int, seconds: float) -> float:
    """Images per second of full batches on all lanes."""
    pixels_B3HW = np.full((batch, 3, side, side), 0.5, np.float32)
    for encode in encodes:
        encode(pixels_B3HW)
    counts = [0] * len(encodes)
    began = time.perf_counter()

    def work(index: int) -> None:
        while time.perf_counter() < began + seconds or not counts[index]:
            encodes[index](pixels_B3HW)
            counts[index] += batch

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(encodes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


async def ask(port: int, num_clients: int, side: int, seconds: float) -> float:
    """Images per second over REST, with more clients than fit into the batches."""
    target = f"/v1/images:embed?outputs=cls1&resolution={side}"
    clients = await rest_clients(port, rest_request(target, photo_like_jpeg(0)), num_clients)
    await send(clients, total=2 * num_clients)
    load = await send(clients, seconds=seconds)
    return load.statuses["200"] / load.wall_s


def conditions(is_gpu: bool) -> Row:
    """The card, its driver and its clocks."""
    if not is_gpu:
        return {"device": "NO GPU: a tiny model on the CPU, to test the script"}
    fields = "name,driver_version,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"device": told.strip(), "fields": fields}


def package_of(work: Path, variant: str, options: argparse.Namespace) -> ModelPackage:
    """Create the package in all precisions, or in float32 if the others cannot be exported here."""
    side = max(options.sides)
    try:
        return random_package(work, variant, side, options.precisions)
    except subprocess.CalledProcessError:
        print(f"{variant}: graphs in float32 only, for the reason above", file=sys.stderr)
        return random_package(work, variant, side)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a row of JSON for each number."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers, names = (lambda text: [*map(int, text.split(","))]), (lambda text: text.split(","))
    parser.add_argument("--variants", type=names, default=["b14", "l14", "so400m14", "g14"])
    parser.add_argument("--contestants", type=names, default=[*CONTESTANTS])
    parser.add_argument("--precisions", type=names, default=["bf16", "fp16"])
    parser.add_argument("--sides", type=numbers, default=[224, 448], help="in pixels")
    parser.add_argument("--batches", type=numbers, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each number")
    parser.add_argument("--work", type=Path, help="folder for models and engines")
    parser.add_argument("--json", type=Path, help="file for the same rows")
    parser.add_argument("--cpu-tiny", action="store_true", help="to test the script")
    options = parser.parse_args(arguments)
    if options.cpu_tiny:
        options.variants, options.sides, options.precisions = [TINY], [56], ["fp32"]
        options.batches = [1, 2]
    rows = [conditions(not options.cpu_tiny)]
    print(json.dumps(rows[0]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        for variant in options.variants:
            package = package_of(work, variant, options)
            setup = Setup(package, not options.cpu_tiny, max(options.batches), work)
            for side in options.sides:
                for measure in (encoders, served):
                    for row in measure(setup, options, side):
                        rows.append({"variant": variant, "part": measure.__name__} | row)
                        print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
