"""Starts a run from a finished one's model: the same size, or one with a finer position grid.

A second stage at a higher resolution is such a run: its model has the larger `native_size`, and the
learnt grid of positions is stretched to it once, as every forward pass would do each time. The new
model sees an image of its native size exactly as the old one did.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import Tipsv2Model

from model.position import resize_grid
from training.methods.teacher import MODEL_FOLDER

_POSITIONS = "vision_model.embeddings.position_embeddings"


def load_start(model: Tipsv2Model, run: Path) -> None:
    """Take over the weights of a finished run or of a released model, in place.

    Args:
        model: Equal to the run's in everything but the position grid.
        run: The folder of a finished run, or of a model.

    Raises:
        FileNotFoundError: There is no model in it (yet).
        ValueError: Its model is of another size.
    """
    folder = run / MODEL_FOLDER if (run / MODEL_FOLDER).is_dir() else run
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"no model to start from in {run}: run its recipe first")
    state = Tipsv2Model.from_pretrained(folder).state_dict()
    ours = model.state_dict()
    state[_POSITIONS] = _stretched(state[_POSITIONS], ours[_POSITIONS].shape[1] - 1)
    wrong = sorted(state.keys() ^ ours.keys())
    wrong += [key for key in state.keys() & ours.keys() if state[key].shape != ours[key].shape]
    if wrong:
        raise ValueError(
            f"{folder} is of another size ({wrong[0]} differs, among {len(wrong)}): only "
            "model.native_size may change between a run and the one it starts from"
        )
    model.load_state_dict(state)


def _stretched(positions_1TD: Tensor, num_patches: int) -> Tensor:
    """Positions [1, 1 + N, D] of the CLS token and N patches on a square grid, for another N."""
    if positions_1TD.shape[1] == 1 + num_patches:
        return positions_1TD
    side = round(num_patches**0.5)
    with torch.no_grad():
        grid_ND = resize_grid(positions_1TD[0, 1:], (side, side))
    return torch.cat((positions_1TD[:, :1], grid_ND[None]), dim=1)
