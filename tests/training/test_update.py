"""One optimizer step by numbers: accumulation, clipping, the finite check, precision, the rates."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import Tipsv2Model

from tests.training.conftest import TINY_HEAD, cut_batch
from training.config import TrainingConfig
from training.data.batch import Batch
from training.methods.base import Method, Step, Terms
from training.methods.pretrain import Pretrain, PretrainConfig
from training.optim import OptimConfig
from training.parallel import ParallelMethod, Precision
from training.update import Update

OPTIM = OptimConfig(warmup_steps=0, clip_norm=1e9)
METHOD = PretrainConfig(head=TINY_HEAD)
TEN = TrainingConfig(name="ten", method=METHOD, num_steps=10)


class Slope(Method):
    """The loss is the sum of two weights times the images' mean: the gradient is that mean."""

    def __init__(self) -> None:
        super(Method, self).__init__()  # it has no model
        self.config = PretrainConfig(contrast_weight=0.0)
        self.weight_2 = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.steps: list[Step] = []
        self.dtypes: list[torch.dtype] = []
        self.at_after_step: list[list[float]] = []

    def training_step(self, batch: Batch, step: Step) -> tuple[Tensor, Terms]:
        """Bright images have a further term."""
        self.steps.append(step)
        self.dtypes.append((torch.ones(1, 1) @ torch.ones(1, 1)).dtype)
        mean = batch.pixels_B3HW.mean()
        metrics = {"mean": mean} | ({"bright": mean} if mean > 0.5 else {})
        return self.weight_2.sum() * mean, metrics

    def after_step(self) -> None:
        """Remember the weights at the time when averages are updated."""
        self.at_after_step.append(self.weight_2.tolist())


def plain(batch: Batch, *values: float) -> list[Batch]:
    """Micro-batches of four images of one colour."""
    return [replace(batch, pixels_B3HW=torch.full_like(batch.pixels_B3HW, v)) for v in values]


def build(
    method: Method,
    optim: OptimConfig = OPTIM,
    *,
    accumulate: int = 1,
    precision: Precision = "float32",
    rank: int = 0,
) -> tuple[Update, torch.optim.SGD]:
    """An update by plain gradient descent with a rate of 1 and a momentum."""
    sgd = torch.optim.SGD(method.parameters(), lr=1.0, momentum=0.5)
    config = replace(TEN, optim=optim, accumulate=accumulate, precision=precision)
    return Update(config, ParallelMethod(method), [sgd], rank=rank), sgd


@pytest.mark.parametrize("values", [(0.4,), (0.1, 0.2, 0.9)])
def test_gradient_and_terms_are_means_over_the_micro_batches(
    values: Sequence[float], batch: Batch
) -> None:
    method = Slope()
    update, _ = build(method, accumulate=len(values))
    row = update(plain(batch, *values), 0)
    assert method.weight_2.tolist() == pytest.approx([0.6, 1.6])
    assert method.at_after_step == [method.weight_2.tolist()]  # averages follow moved weights
    assert float(row["loss"]) == pytest.approx(3 * 0.4)
    assert float(row["mean"]) == pytest.approx(0.4)
    assert float(row["grad_norm"]) == pytest.approx(0.4 * 2**0.5)
    assert [float(row[name]) for name in row if name == "bright"] == pytest.approx(
        [0.9] * (len(values) > 1)
    )


def test_the_sum_of_micro_batches_is_clipped_as_one(batch: Batch) -> None:
    method = Slope()
    update, _ = build(method, replace(OPTIM, clip_norm=0.1), accumulate=2)
    row = update(plain(batch, 0.2, 0.6), 0)
    moved = torch.tensor([1.0, 2.0]) - method.weight_2.detach()
    assert float(moved.norm()) == pytest.approx(0.1, rel=1e-5)
    assert float(row["grad_norm"]) == pytest.approx(0.4 * 2**0.5)  # before clipping


@pytest.mark.parametrize("values", [(float("nan"), 0.5), (0.5, float("inf"))])
def test_a_gradient_that_is_not_finite_changes_nothing(
    values: Sequence[float], batch: Batch
) -> None:
    method = Slope()
    update, sgd = build(method, accumulate=2)
    update(plain(batch, 0.5, 0.5), 0)
    moment_2 = sgd.state[method.weight_2]
    before = method.weight_2.tolist(), moment_2["momentum_buffer"].tolist()
    with pytest.raises(FloatingPointError, match="step 1: the gradient is not finite"):
        update(plain(batch, *values), 1)
    assert (method.weight_2.tolist(), moment_2["momentum_buffer"].tolist()) == before


def test_captions_of_all_micro_batches_are_contrasted_as_in_one_large_batch(
    student_model: Tipsv2Model, make_batches: Callable[..., Sequence[Batch]]
) -> None:
    state = {name: value.clone() for name, value in student_model.state_dict().items()}
    large = make_batches(batch_size=6)[0]
    assert large.captioned_B.all()
    rows, gradients = [], []
    for parts in (1, 3):
        student_model.load_state_dict(state)
        method = Pretrain(student_model, replace(METHOD, dino_weight=0.0, ibot_weight=0.0))
        update, _ = build(method, accumulate=parts)
        rows.append(update([cut_batch(large, part, parts) for part in range(parts)], 0))
        found = method.named_parameters()
        gradients.append({name: p.grad for name, p in found if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert "log_temperature" in gradients[0]
    for name, whole in gradients[0].items():
        assert float((gradients[1][name] - whole).norm()) < 1e-6 * rows[0]["grad_norm"], name
    for name in ("loss", "cls1", "cls2", "grad_norm"):
        assert float(rows[1][name]) == pytest.approx(float(rows[0][name]), rel=1e-6), name


def test_rates_follow_the_schedule_from_their_peak(batch: Batch) -> None:
    update, sgd = build(Slope(), replace(OPTIM, warmup_steps=4))
    rates = []
    for step in (0, 1, 3, 4, 7, 10):
        update(plain(batch, 0.5), step)
        rates += [group["lr"] for group in sgd.param_groups]
    assert rates == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.505, 0.01])
