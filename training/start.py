"""Continues from a finished run: its model, its heads, and what the run averages.

In a second stage at a higher resolution the model has a larger native size. The grid of positions
is resized once, in the same way as in every forward pass, so the new model encodes an image of the
old native size exactly as the old one does.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Tipsv2Model

from model.position import resize_grid
from training.checkpoint import split_model
from training.methods.teacher import find_model, part_of, read_heads

_POSITIONS = "vision_model.embeddings.position_embeddings"
_TOWER_POSITIONS = "embeddings.position_embeddings"


def load_start(model: Tipsv2Model, run: Path) -> None:
    """Copy the weights of a finished run or of a released model, in place.

    Args:
        model: Of the same size as the run's, except for the position grid.
        run: The folder of a finished run, or of a model.

    Raises:
        FileNotFoundError: There is no model in it (yet).
        ValueError: Its model has another size.
    """
    folder = find_model(run)
    ours = model.state_dict()
    state = _stretched(Tipsv2Model.from_pretrained(folder).state_dict(), ours, _POSITIONS)
    wrong = sorted(state.keys() ^ ours.keys())
    wrong += [key for key in state.keys() & ours.keys() if state[key].shape != ours[key].shape]
    if wrong:
        raise ValueError(
            f"{folder} has another size ({wrong[0]} differs, among {len(wrong)}): only "
            "model.native_size may differ between a run and its start"
        )
    model.load_state_dict(state)


def load_heads(method: nn.Module, run: Path) -> tuple[str, ...]:
    """Copy heads, averages, centres and learnt scalars of a finished run, in place.

    A part, such as "head", is copied whole if the run has it in the same shapes; otherwise it stays
    as built. An average that the run does not have starts at what it averages. The optimizers'
    moments are not taken over.

    Args:
        method: The method whose model has been loaded.
        run: The folder of a finished run, or of a model, which has no heads.

    Returns:
        The names of the copied parts.
    """
    saved = read_heads(run)
    _, rest = split_model(method.state_dict())
    copied = []
    for part in dict.fromkeys(name.partition(".")[0] for name in rest):
        ours = part_of(rest, part)
        theirs = part_of(saved, part) or part_of(saved, part.removeprefix("teacher_"))
        theirs = _stretched(theirs, ours, _TOWER_POSITIONS)
        if _shapes(theirs) == _shapes(ours):
            with torch.no_grad():
                for name, value in ours.items():
                    value.copy_(theirs[name])
            copied.append(part)
    return tuple(copied)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _stretched(
    state: Mapping[str, Tensor], ours: Mapping[str, Tensor], name: str
) -> dict[str, Tensor]:
    """The state with its positions [1, 1 + N, D], a CLS token and a square grid, in our N."""
    state = dict(state)
    if name in state and name in ours and state[name].shape != ours[name].shape:
        positions_1TD, num_patches = state[name], ours[name].shape[1] - 1
        side = round(num_patches**0.5)
        with torch.no_grad():
            grid_ND = resize_grid(positions_1TD[0, 1:], (side, side))
        state[name] = torch.cat((positions_1TD[:, :1], grid_ND[None]), dim=1)
    return state
