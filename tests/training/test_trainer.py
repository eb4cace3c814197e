"""The loop: an interrupted run equals an uninterrupted one, and errors stop it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Tipsv2Tokenizer

from tests.training.conftest import TINY_HEAD
from training.checkpoint import checkpoint_step
from training.config import TrainingConfig
from training.inputs.scenes import SceneBatches
from training.methods.base import Method
from training.observation import LOG_FILE, Log, Row, read_log
from training.run import build_method
from training.trainer import Trainer

MakeBatches = Callable[..., SceneBatches]
MakeMethod = Callable[[], Method]


@pytest.fixture
def make_method(tiny_config: TrainingConfig, tokenizer: Tipsv2Tokenizer) -> MakeMethod:
    """Build the same new method each time."""
    return lambda: build_method(tiny_config, len(tokenizer))


def rows(config: TrainingConfig) -> list[Row]:
    """The log without its clocks."""
    clocks = ("time_s", "step_s", "wait_s")
    return [
        {name: value for name, value in row.items() if name not in clocks}
        for row in read_log(config.folder)
    ]


def assert_same_state(one: Trainer, other: Trainer) -> None:
    """Weights, heads, averages, centres and optimizer states are equal to the last bit."""
    state, others = one.parallel.method.state_dict(), other.parallel.method.state_dict()
    for name, value in state.items():
        assert torch.equal(others[name], value), name
    for optimizer, again in zip(one.optimizers, other.optimizers, strict=True):
        moments, repeated = optimizer.state_dict()["state"], again.state_dict()["state"]
        assert moments.keys() == repeated.keys()
        for index, fields in moments.items():
            assert all(torch.equal(repeated[index][name], fields[name]) for name in fields)


@pytest.mark.parametrize(("accumulate", "stops"), [(1, (2, 4)), (2, (3,))])
def test_a_stopped_run_resumes_to_the_identical_result(
    accumulate: int,
    stops: Sequence[int],
    tiny_config: TrainingConfig,
    make_method: MakeMethod,
    make_batches: MakeBatches,
) -> None:
    whole = replace(tiny_config, name="whole", accumulate=accumulate)
    parts = replace(whole, name="parts")
    batches = make_batches(num_steps=6 * accumulate)
    trainer = Trainer(whole, make_method(), batches)
    last = trainer.train()
    for stop in (*stops, None):
        again = Trainer(parts, make_method(), batches)
        last_part = again.train(until=stop)
    assert last_part["loss"] == last["loss"]
    log = rows(whole)
    assert rows(parts) == log
    assert_same_state(trainer, again)
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    # The patch loss joins in after half of the steps.
    assert ["ibot" in row for row in log] == [False] * 3 + [True] * 3
    for row in log:
        expected = (row["cls1"] + row["cls2"]) / 2 + 2.0 * row.get("ibot", 0.0)
        assert row["loss"] == pytest.approx(expected, abs=1e-3)
        assert row["grad_norm"] > 0
        assert 0.001 <= row["temperature"] < 0.08
        assert row["lr_adamw"] > 0
    # Signs of a collapse, from the step on in which the patch loss starts.
    assert [row["centre_norm"] > 0 for row in log] == [False] * 3 + [True] * 3
    assert ["target_entropy" in row for row in log] == [False] * 3 + [True] * 3
    assert all(1 <= row["prototypes_used"] <= TINY_HEAD.num_prototypes for row in log[3:])


def test_after_a_gradient_that_is_not_finite_a_run_resumes_from_its_checkpoint(
    tiny_config: TrainingConfig, make_method: MakeMethod, make_batches: MakeBatches
) -> None:
    method = make_method()
    trainer = Trainer(tiny_config, method, make_batches())
    trainer.train(until=1)
    method.log_temperature.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="step 1: "):
        trainer.train()
    assert checkpoint_step(tiny_config.folder) == 1
    Trainer(tiny_config, make_method(), make_batches()).train(until=3)
    assert [row["step"] for row in rows(tiny_config)] == [1, 2, 3]


def test_data_that_ends_too_early_is_an_error(
    tiny_config: TrainingConfig, make_method: MakeMethod, make_batches: MakeBatches
) -> None:
    config = replace(tiny_config, accumulate=2)
    with pytest.raises(ValueError, match="the data ends after 1 of 6 steps"):
        Trainer(config, make_method(), make_batches(num_steps=3)).train()


def test_a_resumed_run_logs_no_step_twice_nor_half_a_line(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for step in (1, 2, 3):
        log.append({"step": step, "loss": 1.0})
    with (tmp_path / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    log.drop_after(2)
    log.append({"step": 3, "loss": 0.5})
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path)] == [(1, 1), (2, 1), (3, 0.5)]
