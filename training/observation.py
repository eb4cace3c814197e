"""What a run reports while it trains: log, step times, validation scores.

`log.jsonl` holds the loss curve, one JSON object a line, with no step twice: a killed process may
have logged steps after its last checkpoint, and the resumed run repeats them, so their lines are
removed first. TensorBoard shows the same rows. Only rank 0 scores and writes; the other ranks take
part where a sharded model must be gathered.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from transformers import Tipsv2Tokenizer

from model.files import atomic_write
from training.checkpoint import save_atomically, split_model
from training.distributed import is_first_rank
from training.evaluate.encoder import load_for_evaluation
from training.evaluate.ranking import ClassificationBenchmark
from training.evaluate.sets import SegmentationBenchmark
from training.methods.teacher import HEAD_FILE, MODEL_FOLDER
from training.parallel import ParallelMethod

Row = dict[str, float]
LOG_FILE, BOARD_FOLDER = "log.jsonl", "tensorboard"


class Log:
    """The log of one run, on rank 0."""

    def __init__(self, run: Path) -> None:
        self._path = run / LOG_FILE

    def drop_after(self, step: int) -> None:
        """Remove rows after a step, and a line that a kill cut off."""
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        if kept != lines:
            atomic_write(self._path, "".join(kept))

    def append(self, row: Row) -> None:
        """Add a row with the current time."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "time_s": round(time.time(), 1)}) + "\n")


def read_log(run: Path) -> list[Row]:
    """All rows of a run's log, in order; empty if there is no log yet."""
    path = run / LOG_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class StepTimer:
    """Mean time per step since the last report; each step calls `waiting` once."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start a new measurement now."""
        self._began_s, self._waited_s, self._steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the block as waiting for one step's data."""
        before_s = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - before_s
        self._steps += 1

    def per_step(self) -> dict[str, float]:
        """Mean seconds per step ("step_s") and of waiting ("wait_s"); starts a new measurement."""
        steps, waited_s = max(1, self._steps), self._waited_s
        total_s = time.perf_counter() - self._began_s
        self.restart()
        return {"step_s": round(total_s / steps, 4), "wait_s": round(waited_s / steps, 4)}


def save_model(folder: Path, method: ParallelMethod, tokenizer: Tipsv2Tokenizer) -> None:
    """Save the model in transformers' format, its tokenizer, and the heads that students need.

    Called on every rank; rank 0 writes.
    """
    state = method.whole_state()
    if not state:
        return
    weights, heads = split_model(state)
    method.method.model.save_pretrained(folder / MODEL_FOLDER, state_dict=weights)
    tokenizer.save_pretrained(folder / MODEL_FOLDER)
    save_atomically(heads, folder / HEAD_FILE)


class Observation:
    """Scores a run's model at its validations, and shows its log rows in TensorBoard.

    Rows of an earlier start after `from_step` are hidden there.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tipsv2Tokenizer,
        benchmarks: Sequence[SegmentationBenchmark | ClassificationBenchmark],
        *,
        from_step: int,
    ) -> None:
        self._folder, self._tokenizer, self._benchmarks = folder, tokenizer, benchmarks
        self._board = (
            SummaryWriter(folder / BOARD_FOLDER, purge_step=from_step + 1)
            if is_first_rank()
            else None
        )

    def validate(self, step: int, method: ParallelMethod) -> Row:
        """Save the model and score it; called on every rank, scores are returned on rank 0."""
        save_model(self._folder, method, self._tokenizer)
        if not is_first_rank():
            return {}
        encoder, row = load_for_evaluation(self._folder / MODEL_FOLDER), Row()
        for benchmark in self._benchmarks:
            row |= benchmark.quick_scores(encoder)
        print(json.dumps({"step": step, **row}), flush=True)
        return row

    def report(self, row: Row) -> None:
        """Show a log row in TensorBoard."""
        if self._board is not None:
            for name, value in row.items():
                group = "score" if "/" in name else "train"
                self._board.add_scalar(f"{group}/{name}", value, int(row["step"]))

    def close(self) -> None:
        """Write the rows that are left."""
        if self._board is not None:
            self._board.close()
