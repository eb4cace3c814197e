"""The averages' cost: counted bytes, and times of ways that take turns."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import Tipsv2Tokenizer

from training.config import TrainingConfig
from training.data.loader import SceneBatches
from training.reproduce.averages import load_averages, measure_averages, save_averages


def test_only_a_full_average_holds_a_second_tower(
    tiny_config: TrainingConfig,
    make_batches: Callable[..., SceneBatches],
    tokenizer: Tipsv2Tokenizer,
    tmp_path: Path,
) -> None:
    batches = [make_batches()[step] for step in range(4)]
    costs = {
        cost.ema: cost for cost in measure_averages(tiny_config, batches, vocab_size=len(tokenizer))
    }
    head, full, none = costs["head"], costs["full"], costs["none"]
    assert none.ema_bytes == 0 < head.ema_bytes < full.ema_bytes
    assert head.parameter_bytes == full.parameter_bytes == none.parameter_bytes
    assert head.optimizer_bytes == full.optimizer_bytes == none.optimizer_bytes
    assert full.total_bytes - head.total_bytes == full.ema_bytes - head.ema_bytes
    assert head.ratio_to_head == pytest.approx(1.0)
    assert full.step_s > 0
    save_averages(list(costs.values()), tmp_path)
    assert load_averages(tmp_path) == list(costs.values())


def test_costs_that_were_not_measured_are_none(tmp_path: Path) -> None:
    assert load_averages(tmp_path) == []
