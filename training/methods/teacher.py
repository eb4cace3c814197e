"""The frozen teacher of a distillation, loaded from the folder of a run or of a released model.

Shapes: B batch, N patches, D the teacher's width, K prototypes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import Tipsv2Model, Tipsv2VisionModel

from model.features import VisionTokens, vision_tokens
from training.heads import HeadConfig, PrototypeHead
from training.targets import Centering, TokenTargets, patch_targets, whole_targets

TeacherDtype = Literal["float32", "bfloat16"]

HEAD_FILE = "heads.pt"
MODEL_FOLDER = "model"


def find_model(folder: Path) -> Path:
    """The model folder of a run, or the folder itself if it holds a model.

    Raises:
        FileNotFoundError: There is none (yet).
    """
    for place in (folder / MODEL_FOLDER, folder):
        if (place / "config.json").exists():
            return place
    raise FileNotFoundError(
        f"no model in {folder} (yet): run its recipe first, or give the folder of a Tipsv2Model "
        "with config.json, model.safetensors and tokenizer.json"
    )


def read_heads(run: Path) -> dict[str, Tensor]:
    """Heads, averages and centres of a finished run; a released model has none."""
    path = run / HEAD_FILE
    state = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else {}
    return dict(state)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrozenTeacher:
    """A finished vision tower in evaluation mode, with the heads and centres of its run.

    Attributes:
        vision_model: A Tipsv2Model's; its width may differ from the student's.
        head: Its prototype head; None for a model that was published without one.
        centering: Turns the head's cosines at patches into assignments.
        global_centering: Turns cosines at the CLS token into assignments; None for `centering`.
        text_model: For students that start with a copy of it. No loss uses it, so it stays on the
            CPU, and a distillation keeps it no longer than the copying takes.
    """

    vision_model: Tipsv2VisionModel
    head: PrototypeHead | None
    centering: Centering | None
    global_centering: Centering | None = None
    text_model: nn.Module | None = None

    def __post_init__(self) -> None:
        """Freeze everything."""
        for module in (*self._modules(), *([self.text_model] if self.text_model else [])):
            module.eval().requires_grad_(requires_grad=False)

    def _modules(self) -> list[nn.Module]:
        parts: tuple[nn.Module | None, ...] = (
            self.vision_model,
            self.head,
            self.centering,
            self.global_centering,
        )
        return [module for module in parts if module is not None]

    @property
    def width(self) -> int:
        """Width D."""
        return int(self.vision_model.config.hidden_size)

    @torch.no_grad()
    def encode(self, pixels_B3HW: Tensor) -> VisionTokens:
        """Encode whole images, float32; moves the teacher to the device of the images."""
        weight = next(self.vision_model.parameters())
        if weight.device != pixels_B3HW.device:
            for module in self._modules():
                module.to(pixels_B3HW.device)
        tokens = vision_tokens(self.vision_model, pixels_B3HW.to(weight.dtype))
        return VisionTokens(
            cls1_BD=tokens.cls1_BD.float(),
            cls2_BD=tokens.cls2_BD.float(),
            patches_BND=tokens.patches_BND.float(),
        )

    def assign_patches(self, patches_BND: Tensor) -> TokenTargets:
        """See `patch_targets`."""
        assert self.head is not None  # Distill checks it
        assert self.centering is not None
        return patch_targets(self.head, self.centering, patches_BND)

    def assign_global(self, tokens_BD: Tensor) -> Tensor:
        """See `whole_targets`."""
        centering = self.global_centering or self.centering
        assert self.head is not None
        assert centering is not None
        return whole_targets(self.head, centering, tokens_BD)


def load_teacher(
    folder: Path, head: HeadConfig, *, dtype: TeacherDtype = "float32"
) -> FrozenTeacher:
    """Load the result of a pretraining run, or a released model, which has no head.

    Args:
        folder: Of a run, with `model/` and `heads.pt`; or of a model, with `config.json`.
        head: The student's; its teacher temperature sharpens the teacher's assignments. The shape
            of the teacher's own head is that of its weights.
        dtype: Of the teacher's encoder. Its head is float32.

    Raises:
        FileNotFoundError: There is no model in the folder (yet).
    """
    model = Tipsv2Model.from_pretrained(
        find_model(folder),
        dtype=getattr(torch, dtype),
        attn_implementation="sdpa" if torch.cuda.is_available() else "eager",
    )
    state = read_heads(folder)
    tower = part_of(state, "teacher_tower")
    if tower:  # with full EMA the assignments are those of the averaged encoder
        model.vision_model.load_state_dict(tower)
    own_head = _load_head(part_of(state, "teacher_head") or part_of(state, "head"))
    centering = global_centering = None
    if own_head is not None:
        centering = _load_centering(part_of(state, "centering"), own_head, head)
        global_centre = part_of(state, "global_centering")
        global_centering = _load_centering(global_centre, own_head, head) if global_centre else None
    return FrozenTeacher(
        vision_model=model.vision_model,
        text_model=model.text_model,
        head=own_head,
        centering=centering,
        global_centering=global_centering,
    )


def part_of(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The state of one submodule, or of one parameter under its own name."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if key.startswith(prefix) or key == name
    }


def _load_head(state: Mapping[str, Tensor]) -> PrototypeHead | None:
    """Build a head with the shape of its weights."""
    if not state:
        return None
    weights = [value for key, value in state.items() if key.startswith("mlp.") and value.ndim == 2]
    num_prototypes, bottleneck = state["prototypes"].shape
    head = PrototypeHead(
        weights[0].shape[1],
        hidden=weights[0].shape[0],
        bottleneck=bottleneck,
        num_prototypes=num_prototypes,
        layers=len(weights),
    )
    head.load_state_dict(state)
    return head


def _load_centering(state: Mapping[str, Tensor], own: PrototypeHead, head: HeadConfig) -> Centering:
    """The run's final centre; that of a run without one, such as a student's, is zero."""
    centering = Centering(len(own.prototypes), temperature=head.teacher_temperature)
    if state:
        centering.load_state_dict(state)
    return centering
