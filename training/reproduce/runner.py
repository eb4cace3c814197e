"""Makes the planned runs that are not yet made, one after the other, and measures each.

A run that was stopped goes on from its checkpoint; a measured one is never made again.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.methods.teacher import HEAD_FILE, MODEL_FOLDER
from training.reproduce.measure import Benchmarks, measure, save_measures
from training.reproduce.plan import PlannedRun
from training.reproduce.shared_batches import BatchMemory
from training.run import run as train

MEASURES = "measures.npz"
AVERAGE_MEASURES = "average-measures.npz"
RECORD = "record.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is remembered of a finished run beside its scores.

    Attributes:
        config: The whole configuration as text.
        num_images: Images that it was trained on, its start's not counted.
        cpu_s: Processor seconds of the training, in the call that finished it.
        is_whole: Whether that call also began it, so that `cpu_s` is all of it.
    """

    config: str
    num_images: int
    cpu_s: float
    is_whole: bool

    def write(self, path: Path) -> None:
        """Write as JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> Record | None:
    """Read a finished run's record; None where it is not finished."""
    path = folder / RECORD
    if not path.exists():
        return None
    return Record(**json.loads(path.read_text(encoding="utf-8")))


def make_runs(
    runs: Sequence[PlannedRun], benchmarks: Benchmarks, *, after_each: Callable[[], None]
) -> None:
    """Make and measure all runs that are not finished.

    Args:
        runs: Each stands after those that it needs.
        benchmarks: What every run is measured on.
        after_each: Called after each run that was made, to write down what is known by then.

    Raises:
        ValueError: A finished run was made with other settings.
    """
    memory = BatchMemory()
    for run in runs:
        record, folder = read_record(run.config.folder), run.config.folder
        if record is not None and record.config != repr(run.config):
            raise ValueError(f"{folder} was made with other settings; choose another --runs folder")
        lacks_average = run.has_average and not (folder / AVERAGE_MEASURES).exists()
        if record is None:
            _make_run(run, benchmarks, memory)
        if lacks_average:
            _measure_average(folder, benchmarks)
        if record is None or lacks_average:
            after_each()


def _make_run(run: PlannedRun, benchmarks: Benchmarks, memory: BatchMemory) -> None:
    folder, config = run.config.folder, run.config
    print(f"{config.runs.name}: {run.variant}", flush=True)
    is_new = not folder.exists()
    _share_text(run)
    stream = repr((config.data, config.batch_size, config.num_steps))
    started_s = time.process_time()
    path = train(config, share=lambda batches: memory.share(stream, batches))
    cpu_s = time.process_time() - started_s
    if run.is_measured:
        model = Tipsv2Model.from_pretrained(path).eval()
        arrays = measure(model, Tipsv2Tokenizer.from_pretrained(path), benchmarks)
        save_measures(arrays, folder / MEASURES)
    record = Record(
        config=repr(config),
        num_images=config.num_steps * config.batch_size,
        cpu_s=round(cpu_s, 1),
        is_whole=is_new,
    )
    record.write(folder / RECORD)


def _measure_average(folder: Path, benchmarks: Benchmarks) -> None:
    """Measure the model with the averaged encoder, which was its teacher, in place of its own."""
    model = Tipsv2Model.from_pretrained(folder / MODEL_FOLDER).eval()
    state = torch.load(folder / HEAD_FILE, map_location="cpu", weights_only=True)
    prefix = "teacher_tower."
    tower = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    model.vision_model.load_state_dict(tower)
    tokenizer = Tipsv2Tokenizer.from_pretrained(folder / MODEL_FOLDER)
    save_measures(measure(model, tokenizer, benchmarks), folder / AVERAGE_MEASURES)


def _share_text(run: PlannedRun) -> None:
    """Give a start the tokenizer and warmed-up text tower of the first start there is."""
    if run.text_from is None:
        return
    run.config.folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer", "text-tower.pt"):
        source, target = run.text_from / name, run.config.folder / name
        if source.is_dir() and not target.exists():
            shutil.copytree(source, target)
        elif source.is_file() and not target.exists():
            shutil.copyfile(source, target)
