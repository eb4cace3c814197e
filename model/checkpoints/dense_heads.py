"""Puts dense heads over a model's own vision tower, whichever files they came from."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue
from torch import Tensor
from transformers import Tipsv2DptConfig, Tipsv2DptForDensePrediction, Tipsv2Model

from model.checkpoints.loading import load_tensors
from model.graphs import DENSE_TASKS, DenseTask

Heads = Mapping[DenseTask, Mapping[str, Tensor]]
# Modules of one head in Tipsv2DptForDensePrediction, after the task's name.
PARTS = ("neck", "decoder")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseHeads:
    """Heads that were read.

    Attributes:
        model: In float32 and evaluation mode; its backbone's tensors are those of the model that it
            was put over. A head that `tasks` does not name has no modules.
        tasks: In the order of `DENSE_TASKS`.
        origin: For the manifest's provenance.
    """

    model: Tipsv2DptForDensePrediction
    tasks: tuple[DenseTask, ...]
    origin: dict[str, JsonValue]


def put_over(model: Tipsv2Model, config: Tipsv2DptConfig, heads: Heads) -> DenseHeads:
    """Build the dense model of a backbone and heads, without a copy of either.

    Args:
        model: Whose vision tower the heads look at.
        config: Of heads and backbone.
        heads: The tensors of each head, called `neck...` and `decoder...`.

    Returns:
        The heads, with an empty origin.
    """
    weights = {
        f"backbone.{name}": tensor for name, tensor in model.vision_model.state_dict().items()
    }
    for task, tensors in heads.items():
        weights |= {f"{task}_{name}": tensor for name, tensor in tensors.items()}
    dense, found = load_tensors(Tipsv2DptForDensePrediction, config, weights)
    absent = tuple(task for task in DENSE_TASKS if task not in heads)
    lacking = {name for name in found["missing_keys"] if not name.startswith(absent)}
    assert not lacking, lacking
    assert not found["unexpected_keys"], found
    assert not found["mismatched_keys"], found
    for task in absent:
        for part in PARTS:
            delattr(dense, f"{task}_{part}")
    if "depth" in absent:
        del dense.depth_bin_regressor
    tasks = tuple(task for task in DENSE_TASKS if task in heads)
    return DenseHeads(model=dense, tasks=tasks, origin={})
