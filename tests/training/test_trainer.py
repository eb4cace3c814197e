"""The loop: an interrupted run equals an uninterrupted one, and trouble stops it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Tipsv2Model, Tipsv2Tokenizer

from training import update as update_module
from training.checkpoint import checkpoint_step
from training.config import TrainingConfig
from training.data.batch import Batch
from training.data.loader import SceneBatches
from training.methods.base import Method, Step, StepResult
from training.methods.pretrain import Pretrain, PretrainConfig
from training.observation import Row, read_log
from training.parallel import ParallelMethod
from training.run import build_method
from training.trainer import Trainer


@pytest.fixture
def make_method(tiny_config: TrainingConfig, tokenizer: Tipsv2Tokenizer) -> Callable[[], Method]:
    """Build the same fresh method each time."""
    return lambda: build_method(tiny_config, len(tokenizer))


def train(
    config: TrainingConfig, method: Method, batches: SceneBatches, *, until: int | None = None
) -> dict[str, float]:
    """Train with a new trainer, which begins where the last one stopped."""
    return Trainer(config, method, batches).train(until=until)


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


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stops", [(2, 4), (3,)])
def test_a_stopped_run_resumes_to_the_identical_result(
    accumulate: int,
    stops: Sequence[int],
    tiny_config: TrainingConfig,
    make_method: Callable[[], Method],
    make_batches: Callable[..., SceneBatches],
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
    assert len(rows(whole)) == 6
    assert rows(parts) == rows(whole)
    assert_same_state(trainer, again)


def test_every_step_is_logged_with_its_terms(
    tiny_config: TrainingConfig,
    make_method: Callable[[], Method],
    make_batches: Callable[..., SceneBatches],
) -> None:
    train(tiny_config, make_method(), make_batches())
    log = rows(tiny_config)
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    # The patch loss joins in after half of the steps.
    assert ["ibot" in row for row in log] == [False] * 3 + [True] * 3
    for row in log:
        expected = (row["cls1"] + row["cls2"]) / 2 + 2.0 * row.get("ibot", 0.0)
        assert row["loss"] == pytest.approx(expected, abs=1e-3)
        assert row["grad_norm"] > 0


def test_logging_and_validation_come_when_due(
    tiny_config: TrainingConfig,
    make_method: Callable[[], Method],
    make_batches: Callable[..., SceneBatches],
) -> None:
    config = replace(tiny_config, log_every=4, validate_every=3, num_steps=7)
    method, validated = make_method(), []

    def validate(step: int) -> dict[str, float]:
        assert not method.training
        validated.append(step)
        return {"score": float(step)}

    Trainer(config, method, make_batches(num_steps=7), validate=validate).train()
    log = rows(config)
    assert validated == [3, 6, 7]
    assert [row["step"] for row in log] == [3, 4, 6, 7]
    assert [row.get("score") for row in log] == [3.0, None, 6.0, 7.0]
    assert method.training


def test_a_finished_run_does_nothing_more(
    tiny_config: TrainingConfig,
    make_method: Callable[[], Method],
    make_batches: Callable[..., SceneBatches],
) -> None:
    train(tiny_config, make_method(), make_batches())
    method = make_method()
    assert train(tiny_config, method, make_batches()) == {}
    assert len(rows(tiny_config)) == 6


def test_the_learning_rate_follows_the_schedule(
    tiny_config: TrainingConfig,
    make_method: Callable[[], Method],
    make_batches: Callable[..., SceneBatches],
) -> None:
    optim = tiny_config.optim
    peaks = [optim.muon_lr, optim.adamw_lr, optim.adamw_lr, optim.adamw_lr]
    trainer = Trainer(tiny_config, make_method(), make_batches())
    for num_steps in (1, 3):  # the second time goes on from the first
        trainer.train(until=num_steps)
        rates = [group["lr"] for part in trainer.optimizers for group in part.param_groups]
        assert rates == pytest.approx([num_steps * peak / optim.warmup_steps for peak in peaks])


class Recording(Pretrain):
    """A method that remembers what the trainer asked of it."""

    def __init__(self, model: Tipsv2Model, config: PretrainConfig) -> None:
        super().__init__(model, config)
        self.seeds: list[int] = []
        self.progress: list[float] = []
        self.rows: list[tuple[int, int]] = []
        self.moved: list[bool] = []

    def training_step(self, batch: Batch, step: Step) -> StepResult:
        """Remember what came, and the weights before the step."""
        self.seeds.append(step.generator.initial_seed())
        self.progress.append(step.progress)
        self.rows.append((step.first_row, step.global_rows))
        self.before = self.head.prototypes.detach().clone()
        return super().training_step(batch, step)

    def after_step(self) -> None:
        """Remember whether the weights have moved by now."""
        self.moved.append(not torch.equal(self.head.prototypes.detach(), self.before))


def test_each_step_has_its_own_random_choices_and_each_rank_its_rows(
    tiny_config: TrainingConfig,
    make_method: Callable[[], Method],
    make_batches: Callable[..., SceneBatches],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(tiny_config.method, PretrainConfig)
    monkeypatch.setattr(update_module, "num_ranks", lambda: 2)
    seeds: list[list[int]] = []
    for rank in (0, 1, 0):
        method = Recording(make_method().model, tiny_config.method)
        config = replace(tiny_config, name=f"run-{len(seeds)}")
        Trainer(config, method, make_batches(), rank=rank).train()
        assert method.progress == [step / 6 for step in range(6)]
        assert set(method.rows) == {(4 * rank, 8)}
        seeds.append(method.seeds)
    assert seeds[0] == seeds[1] == seeds[2]
    assert len(set(seeds[0])) == 6


def test_averages_move_after_the_weights(
    tiny_config: TrainingConfig,
    make_method: Callable[[], Method],
    make_batches: Callable[..., SceneBatches],
) -> None:
    assert isinstance(tiny_config.method, PretrainConfig)
    method = Recording(make_method().model, tiny_config.method)
    train(tiny_config, method, make_batches())
    # The head has a gradient from half of the steps on.
    assert method.moved == [False] * 3 + [True] * 3


def test_gradients_are_averaged_before_they_are_clipped(
    tiny_config: TrainingConfig,
    make_method: Callable[[], Method],
    make_batches: Callable[..., SceneBatches],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What several ranks really do here is in test_parallel.py."""

    def cancel(parallel: ParallelMethod) -> None:
        for parameter in parallel.method.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()

    monkeypatch.setattr(ParallelMethod, "finish_gradients", cancel)
    train(tiny_config, make_method(), make_batches())
    assert {row["grad_norm"] for row in rows(tiny_config)} == {0.0}


class Broken(Pretrain):
    """A method whose second step has an infinite gradient."""

    def training_step(self, batch: Batch, step: Step) -> StepResult:
        """The first step is sound."""
        result = super().training_step(batch, step)
        factor = float("inf") if step.progress > 0 else 1.0
        return StepResult(loss=result.loss * factor, metrics=result.metrics)


def test_a_gradient_that_is_not_finite_stops_the_run(
    tiny_config: TrainingConfig,
    make_method: Callable[[], Method],
    make_batches: Callable[..., SceneBatches],
) -> None:
    assert isinstance(tiny_config.method, PretrainConfig)
    broken = Broken(make_method().model, tiny_config.method)
    trainer = Trainer(tiny_config, broken, make_batches())
    trainer.train(until=1)
    before = {name: value.clone() for name, value in broken.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"step 1: .*not finite; lower .*optim\.muon_lr"):
        trainer.train()
    for name, value in broken.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert checkpoint_step(tiny_config.folder) == 1
    # What the first step had done goes on, with a method that is whole.
    train(tiny_config, make_method(), make_batches())
    assert [row["step"] for row in rows(tiny_config)] == [1, 2, 3, 4, 5, 6]


def test_only_the_first_rank_logs_and_shows(
    tiny_config: TrainingConfig,
    make_method: Callable[[], Method],
    make_batches: Callable[..., SceneBatches],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Which files each of two real ranks writes is in test_parallel.py."""

    def fail(row: Row) -> None:
        raise AssertionError(row)

    monkeypatch.setattr(update_module, "num_ranks", lambda: 2)
    monkeypatch.setattr("training.trainer.save_checkpoint", lambda *_, **__: None)
    batches = make_batches(rank=1, num_ranks=2)
    row = Trainer(tiny_config, make_method(), batches, rank=1, report=fail).train()
    assert row["step"] == 6
    assert not list(tiny_config.folder.iterdir())
    assert capsys.readouterr().out == ""
    Trainer(replace(tiny_config, name="first"), make_method(), make_batches()).train()
    assert "6/6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("every_s", "expected"), [(0.0, [1, 2, 3, 4, 5, 6, 7]), (10.0, [3, 6, 7]), (99.0, [7])]
)
def test_checkpoints_come_by_the_clock_and_once_at_the_end(
    every_s: float,
    expected: Sequence[int],
    tiny_config: TrainingConfig,
    make_method: Callable[[], Method],
    make_batches: Callable[..., SceneBatches],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step takes four seconds of this clock."""
    saved: list[int] = []

    def remember(_: Path, *, step: int, **_others: object) -> None:
        saved.append(step)

    method = make_method()
    after_step, now_s = method.after_step, [0.0]

    def tick() -> None:
        now_s[0] += 4.0
        after_step()

    monkeypatch.setattr(method, "after_step", tick)
    monkeypatch.setattr("training.trainer.save_checkpoint", remember)
    clock = SimpleNamespace(monotonic=lambda: now_s[0])
    monkeypatch.setattr("training.trainer.time", clock)
    config = replace(tiny_config, checkpoint_every_s=every_s, num_steps=7)
    Trainer(config, method, make_batches(num_steps=7)).train()
    assert saved == expected


def test_data_that_ends_too_early_is_a_mistake(
    tiny_config: TrainingConfig,
    make_method: Callable[[], Method],
    make_batches: Callable[..., SceneBatches],
) -> None:
    config = replace(tiny_config, accumulate=2)
    with pytest.raises(ValueError, match="the data ends after 3 of 6 steps"):
        train(config, make_method(), make_batches(num_steps=7))
