"""What a run shows of itself while it trains: scores, the model folder, TensorBoard.

Only rank 0 scores and writes; the others take part where a model that is cut must be gathered.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training.board import Board, scene_panel
from training.checkpoint import save_atomically
from training.evaluate.benchmark import SegmentationBenchmark
from training.log import Row
from training.methods.teacher import HEAD_FILE, MODEL_FOLDER
from training.parallel import ParallelMethod

_NUM_SHOWN = 4
_MODEL_PREFIX = "model."


def save_model(folder: Path, method: ParallelMethod, tokenizer: Tipsv2Tokenizer) -> None:
    """Write the model as transformers does, its tokenizer, and the heads a student will need.

    Every rank calls it; rank 0 writes.
    """
    state = method.whole_state()
    if not state:
        return
    weights = {
        name.removeprefix(_MODEL_PREFIX): value
        for name, value in state.items()
        if name.startswith(_MODEL_PREFIX)
    }
    method.method.model.save_pretrained(folder / MODEL_FOLDER, state_dict=weights)
    tokenizer.save_pretrained(folder / MODEL_FOLDER)
    heads = {name: value for name, value in state.items() if not name.startswith(_MODEL_PREFIX)}
    save_atomically(heads, folder / HEAD_FILE)


class Observation:
    """Scores a run's model on the development scenes and draws some of them.

    Args:
        folder: Of the run.
        tokenizer: Of its model.
        benchmarks: Development sets; the first one's first scenes are drawn. None is scored where
            there are none.
        board: TensorBoard's writer, on rank 0.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tipsv2Tokenizer,
        benchmarks: Sequence[SegmentationBenchmark],
        *,
        board: Board | None,
    ) -> None:
        self._folder, self._tokenizer = folder, tokenizer
        self._benchmarks, self._board = benchmarks, board

    def validate(self, step: int, method: ParallelMethod) -> Row:
        """Save the model and score it; every rank calls it, rank 0 has the scores."""
        save_model(self._folder, method, self._tokenizer)
        if self._board is None:
            return {}
        model, row = self._scored_model(method), Row()
        for benchmark in self._benchmarks:
            row |= benchmark.quick_scores(model, self._tokenizer)
        print(json.dumps({"step": step, **row}), flush=True)
        if self._benchmarks:
            shown = self._benchmarks[0]
            scenes = shown.scenes[:_NUM_SHOWN]
            panel = scene_panel(model, self._tokenizer, scenes, shown.names)
            self._board.add_panel(step, panel)
        return row

    def _scored_model(self, method: ParallelMethod) -> Tipsv2Model:
        """The model itself where this process has all of it on the CPU, else what was saved."""
        if not method.is_sharded and method.device == torch.device("cpu"):
            return method.method.model
        saved: Tipsv2Model = Tipsv2Model.from_pretrained(
            self._folder / MODEL_FOLDER, attn_implementation="eager"
        )
        saved.eval()
        return saved

    def report(self, row: Row) -> None:
        """Take a row of the log."""
        if self._board is not None:
            self._board.add_row(row)
