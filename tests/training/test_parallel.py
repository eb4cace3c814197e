"""A method on its device in one process: recomputed activations, compiled blocks, whole state.

Several ranks are in test_trainer_ranks.py.
"""

import shutil
from collections.abc import Callable
from functools import partialmethod

import pytest
import torch
from torch import Tensor, nn
from transformers import Tipsv2Model

from training.data.batch import Batch
from training.heads import HeadConfig
from training.methods.base import Step
from training.methods.pretrain import Pretrain, PretrainConfig
from training.parallel import ParallelMethod, blocks, choose_device, move

HEAD = HeadConfig(hidden=32, bottleneck=16, num_prototypes=24)
Gradients = dict[str, Tensor]


@pytest.fixture
def make_method(student_model: Tipsv2Model) -> Callable[[], Pretrain]:
    """The same method of the same model each time, with no gradients."""
    state = {name: value.clone() for name, value in student_model.state_dict().items()}

    def make() -> Pretrain:
        student_model.load_state_dict(state)
        student_model.zero_grad()
        torch.manual_seed(0)
        return Pretrain(student_model, PretrainConfig(head=HEAD)).train()

    return make


def take_step(parallel: ParallelMethod, batch: Batch) -> tuple[float, Gradients]:
    """Loss and gradients of a step with every term of the batch."""
    generator = torch.Generator().manual_seed(1)
    step = Step(progress=0.5, generator=generator, first_row=0, global_rows=4)
    loss, _ = parallel(batch, step)
    loss.backward()
    named = parallel.method.named_parameters()
    return float(loss.detach()), {name: p.grad for name, p in named if p.grad is not None}


def count_calls(model: Tipsv2Model) -> list[str]:
    """Fill a list, from now on, with a word for each pass through the first blocks' MLPs."""
    calls: list[str] = []
    towers = {"vision": model.vision_model.encoder.layer, "text": model.text_model.encoder.layers}
    for tower, layers in towers.items():
        # Before the pass: the second one ends where nothing more is needed of it.
        layers[0].mlp.register_forward_pre_hook(lambda *_, tower=tower: calls.append(tower))
    return calls


def test_activations_computed_again_give_the_same_gradients(
    make_method: Callable[[], Pretrain], batch: Batch
) -> None:
    kept = ParallelMethod(make_method())
    calls = count_calls(kept.method.model)
    loss, gradients = take_step(kept, batch)
    once = list(calls)
    again = ParallelMethod(make_method(), checkpoint_activations=True)
    calls.clear()
    loss_again, gradients_again = take_step(again, batch)
    # Each block ran a second time for the backward pass, in both towers.
    assert sorted(calls) == sorted(2 * once)
    assert set(calls) == {"vision", "text"}
    assert loss_again == loss
    assert gradients_again.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradients_again[name], gradient), name


def test_the_blocks_are_all_but_the_one_that_the_value_path_enters(
    student_model: Tipsv2Model,
) -> None:
    vision, text = student_model.vision_model.encoder.layer, student_model.text_model.encoder.layers
    assert list(blocks(student_model)) == [*list(vision)[:-1], *text]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_blocks_take_the_same_step(
    make_method: Callable[[], Pretrain], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs are traced and run, but not turned into machine code, which takes a minute."""
    loss, gradients = take_step(ParallelMethod(make_method()), batch)
    traced: list[int] = []

    def run_eagerly(graph: torch.fx.GraphModule, _examples: list[Tensor]) -> torch.fx.GraphModule:
        traced.append(len(graph.graph.nodes))
        return graph

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=run_eagerly))
    parallel = ParallelMethod(make_method(), compile_blocks=True)
    compiled_loss, compiled_gradients = take_step(parallel, batch)
    assert traced
    assert compiled_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(compiled_gradients[name], gradient, rtol=1e-3, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore::DeprecationWarning")
def test_machine_code_takes_the_same_step(
    make_method: Callable[[], Pretrain], batch: Batch
) -> None:
    loss, gradients = take_step(ParallelMethod(make_method()), batch)
    parallel = ParallelMethod(make_method(), compile_blocks=True)
    compiled_loss, compiled_gradients = take_step(parallel, batch)
    assert compiled_loss == pytest.approx(loss, rel=1e-4)
    for name, gradient in gradients.items():
        assert torch.allclose(compiled_gradients[name], gradient, rtol=1e-2, atol=1e-4), name


def test_alone_nothing_is_wrapped_exchanged_or_copied(
    make_method: Callable[[], Pretrain], batch: Batch
) -> None:
    for kind in ("ddp", "fsdp2"):
        method = make_method()
        parallel = ParallelMethod(method, kind="ddp" if kind == "ddp" else "fsdp2")
        assert parallel.method is method
        assert not parallel.is_sharded
        with parallel.accumulating(is_last=False):
            _, gradients = take_step(parallel, batch)
        before = {name: gradient.clone() for name, gradient in gradients.items()}
        parallel.finish_gradients()
        assert all(torch.equal(gradients[name], value) for name, value in before.items())
        whole = parallel.whole_state()
        assert whole.keys() == method.state_dict().keys()
    if not torch.cuda.is_available():
        assert choose_device() == torch.device("cpu")
        assert move(batch, choose_device()) is batch
