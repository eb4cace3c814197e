"""One of two ranks that test_distributed starts. Arguments: rank, folder for results as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tests.training.ranks import join, leave
from training import distributed
from training.optim import OptimConfig, build_optimizers, clip_gradients
from training.targets import Centering


class TwoParts(nn.Module):
    """A part that every image trains, one that some train, one that none trains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.always, self.sometimes, self.never = (nn.Linear(3, 1) for _ in range(3))
        self.frozen = nn.Linear(3, 1).requires_grad_(requires_grad=False)

    def loss(self, inputs_N3: Tensor) -> Tensor:
        """The mean over images; the second part sees those with a positive first number."""
        total: Tensor = (self.always(inputs_N3) + self.frozen(inputs_N3)).square().mean()
        chosen_N = inputs_N3[:, 0] > 0
        if chosen_N.any():
            part_N1 = self.sometimes(inputs_N3[chosen_N]).square()
            total = total + part_N1.sum() / len(inputs_N3)
        return total


def gradients(module: nn.Module) -> dict[str, list[float] | None]:
    """Flat gradients by name."""
    return {
        name: None if parameter.grad is None else parameter.grad.flatten().tolist()
        for name, parameter in module.named_parameters()
    }


def data() -> Tensor:
    """Eight images; only the first half has positive first numbers."""
    inputs_N3 = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    inputs_N3[:, 0] = inputs_N3[:, 0].abs() * torch.tensor([1.0] * 4 + [-1.0] * 4)
    return inputs_N3


def centre_after(cosines_NK: Tensor) -> list[float]:
    """Where the centre is after one batch."""
    centering = Centering(3, temperature=0.1, momentum=0.9)
    centering(cosines_NK)
    return [float(value) for value in centering.centre_K]


def gathered(rank: int) -> dict[str, object]:
    """Gather different numbers of rows; a loss of each rank sends gradients back to them."""
    rows_R2 = torch.arange(4.0).view(2, 2) if rank == 0 else torch.tensor([[7.0, 9.0]])
    rows_R2.requires_grad_()
    (all_G2, ids_G), own = distributed.gather_rows(rows_R2, torch.arange(len(rows_R2)) + 10 * rank)
    weight_G = torch.arange(1.0, len(all_G2) + 1)
    (weight_G[:, None] * all_G2 * (rank + 1)).sum().backward()
    assert rows_R2.grad is not None
    return {
        "rows": all_G2.tolist(),
        "ids": ids_G.tolist(),
        "own": [own.start, own.stop],
        "grad": rows_R2.grad.tolist(),
        "empty": gathered_from_one(rank),
        "sum": distributed.sum_over_ranks([rank + 1, 5]),
        "logsumexp": distributed.logsumexp_over_ranks(torch.tensor([float(rank), -2.0])).tolist(),
    }


def gathered_from_one(rank: int) -> list[object]:
    """Gather rows that only rank 1 has, and rows that no rank has."""
    alone_R1 = torch.ones(2 * rank, 1, requires_grad=True)
    (one_G1,), own = distributed.gather_rows(alone_R1)
    one_G1.sum().backward()
    assert alone_R1.grad is not None
    (none_G1,), _ = distributed.gather_rows(torch.ones(0, 1))
    return [len(one_G1), [own.start, own.stop], alone_R1.grad.tolist(), len(none_G1)]


class Shapes(nn.Module):
    """Parameters of every kind: matrices, a stack of matrices, vectors and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(3, 5) for _ in range(2))  # 5 rows for two ranks
        self.stack = nn.Parameter(torch.randn(3, 2, 4))
        self.row = nn.Parameter(torch.randn(1, 4))
        self.scalar = nn.Parameter(torch.tensor(0.5))


def shard(module: Shapes) -> None:
    """Shard all but the scalar, as `training.parallel` does."""
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)), ignored_params={module.scalar})


def updated(module: Shapes) -> dict[str, list[float]]:
    """Three steps of clipping and AdamW; the second matrix joins in at the second step."""
    (optimizer,) = build_optimizers([module], OptimConfig(optimizer="adamw", adamw_lr=0.1))
    for step in range(3):
        for number, (name, parameter) in enumerate(module.named_parameters()):
            if step == 0 and name.startswith("layers.1"):
                continue
            generator = torch.Generator().manual_seed(10 * number + step)
            gradient = torch.randn(parameter.shape, generator=generator)
            data = parameter.data
            parameter.grad = (
                distribute_tensor(gradient, data.device_mesh, data.placements)
                if isinstance(data, DTensor)
                else gradient
            )
        clip_gradients(module.parameters(), 2.0)
        optimizer.step()
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).flatten().tolist()
        for name, p in module.named_parameters()
    }


def sharded_updates() -> dict[str, Any]:
    """The updated parameters, and the exchanges in a step."""
    module, exchanges = Shapes(), []
    shard(module)
    exchange = dist.all_reduce

    def count(values: Tensor, **settings: Any) -> None:
        exchanges.append(len(values.shape))
        exchange(values, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", count)
        return {"parameters": updated(module), "exchanges": len(exchanges) / 3}


def main(rank: int, folder: Path) -> None:
    """Call every function of `training.distributed` together with the other rank."""
    torch.set_num_threads(1)
    join(rank, folder)
    seen: dict[str, object] = {"start": distributed.start()}
    module, mine = TwoParts(), slice(4 * rank, 4 * rank + 4)
    module.loss(data()[mine]).backward()
    distributed.average_gradients(module)
    seen["gradients"] = gradients(module)
    untouched = TwoParts()
    distributed.average_gradients(untouched)
    seen["untouched"] = gradients(untouched)
    own_K = torch.tensor([float(rank), 2.0])
    seen["mean"] = distributed.mean_over_ranks(own_K).tolist()
    seen["argument"] = own_K.tolist()
    seen["centre"] = centre_after(data()[mine])
    seen["gathered"] = gathered(rank)
    seen["updates"] = sharded_updates()
    with distributed.first_rank_first():
        made = folder / "made-once"
        seen["found"] = made.exists()
        made.touch()
    distributed.stop()
    seen["is_over"] = not dist.is_initialized()
    (folder / f"rank-{rank}.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
    leave()
