"""Images per second from one loader core, against the consumption of a training step.

Claim: training never waits for data. One worker loads images several times as fast as the small
student's step consumes them on an equal core. A GPU that trains B/14 needs fewer worker cores than
a machine has per GPU.
Run: python -m benchmarks.data_loading [--data data] [--device h100] [--mfu 0.4]

Loaders and steps are measured in CPU time, each on one core. The GPU's rate is calculated: its peak
at an assumed utilisation, divided by the operations of an image.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from transformers import Tipsv2Tokenizer

from benchmarks.photo_shards import HEIGHT, QUALITY, WIDTH, build_photo_shards
from benchmarks.student_step import build_update, num_images, step_cpu_s
from model.package import STUDENT_FOLDER
from training.commands.train import RECIPES
from training.config import DataConfig
from training.cost import DEVICES, Cluster, estimate, plan_of
from training.data.batch import Batch
from training.data.crops import CropConfig
from training.data.folder import TRAIN_STYLES, DataFolder, seen_names
from training.data.shards.batches import ImageBatches, RunShare, ShardsConfig
from training.data.shards.item_sources import SceneItems
from training.data.shards.manifest import ShardStore
from training.data.shards.writing import ShardPlan, build_shards
from training.inputs.scenes import SceneInputs
from training.recipes import scale

_GPU_BATCH = 64


class Batches(Protocol):
    """Batches by number."""

    def loader(self, first_step: int, *, num_workers: int) -> Iterable[Batch]:
        """Iterate from a batch number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingTime:
    """CPU seconds per image in the worker and in the process that receives its batches."""

    worker_s: float
    taker_s: float


def measure_loading(batches: Batches) -> LoadingTime:
    """Take all batches from one worker process."""
    own_s, child_s, images = time.process_time(), _children_cpu_s(), 0
    for batch in batches.loader(0, num_workers=1):
        images += num_images(batch)
    # The kernel adds a worker's CPU time to its parent's when it exits, after its last batch.
    own_s, child_s = time.process_time() - own_s, _children_cpu_s() - child_s
    return LoadingTime(worker_s=child_s / images, taker_s=own_s / images)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def student_rows(data: Path, tokenizer: Tipsv2Tokenizer, num_batches: int) -> None:
    """Print a line for each stage of the small student's recipe, and one for shards of its last."""
    config = RECIPES["student"]()
    assert isinstance(config.data, DataConfig)
    share = RunShare(batch_size=config.batch_size, num_steps=num_batches)
    begin, update = 0.0, None
    for stage in config.data.stages:
        scenes = replace(config.data, folder=data, stages=(replace(stage, until=1.0),))
        batches = SceneInputs(config, scenes).batches(tokenizer, share)
        made = [batches[number] for number in range(num_batches)]
        update = update or build_update(config, tokenizer, made)
        step = round((begin + stage.until) / 2 * config.num_steps)
        step_s = step_cpu_s(update, made, step=step)
        print_student(f"scenes of {stage.scenes.size} pixels", measure_loading(batches), step_s)
        begin = stage.until
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = DataFolder(path=data).source("train", styles=TRAIN_STYLES, names=seen_names())
        items = SceneItems(source=source, config=stage.scenes, count=num_batches * share.batch_size)
        build_shards(items, folder, ShardPlan(kind="scenes"), is_shown=False)
        images = ShardsConfig(folder=folder, captions=config.data.captions, crops=CropConfig())
        shards = ImageBatches(ShardStore(folder), tokenizer, images, share)
        print_student(f"shards of {stage.scenes.size} pixels", measure_loading(shards), step_s)


def print_student(what: str, loading: LoadingTime, step_s: float) -> None:
    """Print both rates and their ratio."""
    print(
        f"{what:>24} {1 / loading.worker_s:14.0f} {1 / step_s:12.0f} "
        f"{step_s / loading.worker_s:8.1f} {loading.taker_s / step_s:8.1%}"
    )


def gpu_rows(tokenizer: Tipsv2Tokenizer, options: argparse.Namespace) -> None:
    """Print a line per stage of the B/14 recipe: the GPU's rate and the workers it needs."""
    files = sorted(DataFolder(path=options.data).photos.glob("*.jpg"))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        count = _GPU_BATCH * options.batches
        kilobytes = build_photo_shards(files, path, count=count)
        print(f"\nJPEGs of {WIDTH} x {HEIGHT}, quality {QUALITY}, {kilobytes:.0f} kB each:")
        print(f"{'':>24} {'a worker makes':>14} {'a GPU takes':>12} {'workers':>8} {'taker':>8}")
        for recipe in (scale.student_b14(), scale.student_b14_high_res()):
            assert isinstance(recipe.data, ShardsConfig)
            data = replace(recipe.data, folder=path)
            share = RunShare(batch_size=_GPU_BATCH, num_steps=options.batches)
            shards = ImageBatches(ShardStore(path), tokenizer, data, share)
            loading = measure_loading(shards)
            cluster = Cluster(device=DEVICES[options.device], num_devices=1, mfu=options.mfu)
            cost = estimate(plan_of(recipe, num_ranks=scale.NUM_RANKS), cluster)
            rate = cluster.device.peak_flops * cluster.mfu / cost.flops_per_image
            print(
                f"{recipe.name:>24} {1 / loading.worker_s:14.0f} {rate:12.0f} "
                f"{rate * loading.worker_s:8.1f} {rate * loading.taker_s:8.0%}   "
                f"{cost.flops_per_image / 1e12:.2f} TFLOP an image"
            )


def main() -> None:
    """Measure the loaders and the steps they feed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder filled by `python -m training data`"
    )
    parser.add_argument("--batches", type=int, default=8, help="batches per loader")
    parser.add_argument(
        "--device", choices=DEVICES, default="h100", help="GPU whose peak is assumed"
    )
    parser.add_argument("--mfu", type=float, default=0.4, help="assumed share of the peak")
    options = parser.parse_args()
    tokenizer = Tipsv2Tokenizer.from_pretrained(STUDENT_FOLDER)
    print(f"images a second of CPU time on one core of {processor()}, one thread")
    print(f"{'':>24} {'a worker makes':>14} {'a step takes':>12} {'ratio':>8} {'taker':>8}")
    student_rows(options.data, tokenizer, options.batches)
    gpu_rows(tokenizer, options)
    print(
        f"\na GPU takes: counted operations on an {DEVICES[options.device].title} at an assumed "
        f"{options.mfu:.0%} of its peak\n"
        "taker: the share of a core that receiving batches takes in the training process"
    )


def processor() -> str:
    """Return the name of this machine's processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    main()
