"""One of two ranks that share a step, and the same step for one process alone.

Arguments: rank, folder. Writes loss, metrics and gradients of each case.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Tipsv2Model

from tests.training.methods.conftest import MeanColours
from tests.training.ranks import join, leave
from training.config import ModelConfig
from training.data.batch import Batch, TextBatch, UnnamedDrawings
from training.distributed import mean_over_ranks, stop
from training.heads import HeadConfig
from training.methods.base import Method, Step
from training.methods.captioned import ImageBackboneConfig
from training.methods.pretrain import Pretrain, PretrainConfig

GLOBAL_ROWS = 6
NUM_CROPS = 2
HEAD = HeadConfig(layers=2, hidden=32, bottleneck=16, num_prototypes=12)
CONFIG = PretrainConfig(
    head=HEAD,
    names_weight=1.0,
    image_backbone=ImageBackboneConfig(weight=0.5, scenes_until=1.0, titles_weight=0.5),
)
# Which unnamed drawings have titles; two titles are equal across ranks.
TITLED = (1, 0, 1, 1)
# Which images have captions: the ranks have different numbers, or one has none, or both.
CAPTIONED = {"uneven": (1, 1, 1, 0, 0, 1), "one": (1, 1, 1, 0, 0, 0), "none": (0,) * 6}


def new_method() -> Method:
    """A tiny model and its method, the same on every rank."""
    torch.manual_seed(0)
    size = ModelConfig(dim=24, vision_layers=2, text_layers=1, heads=2, native_size=56)
    method = Pretrain(Tipsv2Model(size.build(50)).eval(), CONFIG)
    method.image_backbone = MeanColours()
    return method


def random_texts(count: int, generator: torch.Generator) -> TextBatch:
    """Four tokens each."""
    tokens_B4 = torch.randint(1, 50, (count, 4), generator=generator)
    return TextBatch(token_ids_BL=tokens_B4, mask_BL=torch.ones_like(tokens_B4))


def global_batch(captioned: tuple[int, ...]) -> Batch:
    """Six images; two captions are equal across ranks, and so are names."""
    generator = torch.Generator().manual_seed(3)
    captioned_B = torch.tensor(captioned).bool()
    rows = int(captioned_B.sum())
    present_BU = torch.tensor(
        [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1]]
    ).bool()
    titled_E = torch.tensor(TITLED).bool()
    unnamed = UnnamedDrawings(
        pixels_E3hw=torch.rand(len(TITLED), 3, 28, 28, generator=generator),
        titled_E=titled_E,
        titles=random_texts(int(titled_E.sum()), generator),
        title_ids_T=torch.tensor([8, 9, 8]),
    )
    return Batch(
        pixels_B3HW=torch.rand(GLOBAL_ROWS, 3, 42, 42, generator=generator),
        locals_CB3hw=torch.rand(NUM_CROPS, GLOBAL_ROWS, 3, 28, 28, generator=generator),
        captioned_B=captioned_B,
        cls1=random_texts(rows, generator),
        cls1_ids_T=torch.tensor([5, 6, 7, 5])[:rows],
        cls2=random_texts(rows, generator),
        cls2_ids_T=torch.tensor([1, 2, 3, 4])[:rows],
        names=random_texts(4, generator),
        name_ids_U=torch.tensor([40, 10, 30, 20]),
        present_BU=present_BU,
        unnamed=unnamed,
    )


def texts_at(texts: TextBatch, rows: Tensor) -> TextBatch:
    """Some of the texts."""
    return TextBatch(token_ids_BL=texts.token_ids_BL[rows], mask_BL=texts.mask_BL[rows])


def unnamed_part(drawings: UnnamedDrawings | None, rank: int, num_ranks: int) -> UnnamedDrawings:
    """A rank's share of the unnamed drawings and their titles."""
    assert drawings is not None
    size = len(TITLED) // num_ranks
    mine = torch.arange(size) + rank * size
    titles = (drawings.titled_E.cumsum(0) - 1)[mine][drawings.titled_E[mine]]
    return UnnamedDrawings(
        pixels_E3hw=drawings.pixels_E3hw[mine],
        titled_E=drawings.titled_E[mine],
        titles=texts_at(drawings.titles, titles),
        title_ids_T=drawings.title_ids_T[titles],
    )


def part(batch: Batch, rank: int, num_ranks: int) -> Batch:
    """A rank's share of the global batch: its images, their captions and their names."""
    size = GLOBAL_ROWS // num_ranks
    mine = torch.arange(size) + rank * size
    row_B = batch.captioned_B.cumsum(0) - 1
    captions = row_B[mine][batch.captioned_B[mine]]
    names = batch.present_BU[mine].any(0).nonzero()[:, 0].flip(0)  # each rank in its own order
    return Batch(
        pixels_B3HW=batch.pixels_B3HW[mine],
        locals_CB3hw=batch.locals_CB3hw[:, mine],
        captioned_B=batch.captioned_B[mine],
        cls1=texts_at(batch.cls1, captions),
        cls1_ids_T=batch.cls1_ids_T[captions],
        cls2=texts_at(batch.cls2, captions),
        cls2_ids_T=batch.cls2_ids_T[captions],
        names=texts_at(batch.names, names),
        name_ids_U=batch.name_ids_U[names],
        present_BU=batch.present_BU[mine][:, names],
        unnamed=unnamed_part(batch.unnamed, rank, num_ranks),
    )


def average_gradients(method: Method) -> None:
    """As DDP does: a rank without a gradient counts as zero."""
    for parameter in method.parameters():
        has = mean_over_ranks(torch.tensor(float(parameter.grad is not None)))
        if has > 0:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = mean_over_ranks(gradient)


def take_step(method: Method, batch: Batch, rank: int) -> dict[str, Any]:
    """Loss, metrics and gradients of one step, as means over the ranks, and the centres."""
    method.train()
    rows = len(batch.pixels_B3HW)
    step = Step(
        progress=0.5,
        generator=torch.Generator().manual_seed(9),
        first_row=rank * rows,
        global_rows=GLOBAL_ROWS,
    )
    loss, terms = method(batch, step)
    loss.backward()
    average_gradients(method)
    return {
        "loss": mean_over_ranks(loss.detach()),
        "metrics": {name: mean_over_ranks(value) for name, value in terms.items()},
        "gradients": {
            name: parameter.grad
            for name, parameter in method.named_parameters()
            if parameter.grad is not None
        },
        "buffers": {name: value for name, value in method.named_buffers() if "centre" in name},
    }


def take_steps(rank: int, num_ranks: int) -> dict[str, dict[str, Any]]:
    """Take the step of every case."""
    return {
        case: take_step(new_method(), part(global_batch(captioned), rank, num_ranks), rank)
        for case, captioned in CAPTIONED.items()
    }


if __name__ == "__main__":
    own_rank, place = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    join(own_rank, place)
    torch.save(take_steps(own_rank, 2), place / f"{own_rank}.pt")
    stop()
    leave()
