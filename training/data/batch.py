"""One rank's part of a training step: images, captions, names.

A batch has no masks. Only `TeacherCells` says what a point shows, for the distillation of a space
whose teacher was fitted to masks as well; all other losses learn from captions.

Shapes: B images, C local crops of each, T captioned images, U distinct names in the batch, V images
that the teacher of a space saw, p points along a side, L tokens, H W pixels of the global crop, h w
pixels of a local crop, E unnamed drawings.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Tipsv2Tokenizer

from model.text import TEMPLATES

MAX_TOKENS = 64
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextBatch:
    """Tokenised texts: int64 [B, L] ids, right-padded with 0, and the mask of real tokens."""

    token_ids_BL: Tensor
    mask_BL: Tensor

    def __len__(self) -> int:
        return len(self.token_ids_BL)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnnamedDrawings:
    """Close-ups of drawings without a concept's name.

    Attributes:
        pixels_E3hw: uint8, or float32 in [0, 1].
        titled_E: bool; the drawings with a title.
        titles: A row for each titled drawing, in their order.
        title_ids_T: int64; equal titles have equal ids, on every rank.
    """

    pixels_E3hw: Tensor
    titled_E: Tensor
    titles: TextBatch
    title_ids_T: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherCells:
    """What the teacher of a space says about the first V images, and what all images show.

    Attributes:
        patches_VND: At every patch of the student, unit vectors of its width D.
        cls1_VD: Of the whole image, likewise.
        cls2_VD: The mean over the patches, likewise.
        name_Bpp: int64; the row in `names` that is shown at each point of a square grid, -1 for
            none.
        names: Names that the batch shows, and others, in a prompt.
    """

    patches_VND: Tensor
    cls1_VD: Tensor
    cls2_VD: Tensor
    name_Bpp: Tensor
    names: TextBatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """One rank's part of a step.

    Attributes:
        pixels_B3HW: The global crops, uint8 from the loader, which is a quarter of the bytes to
            the device; float32 in [0, 1] for the losses.
        locals_CB3hw: The local crops, likewise; C may be 0.
        captioned_B: bool; the images with captions.
        cls1: Captions for CLS1, a row for each captioned image, in their order.
        cls1_ids_T: int64; equal captions have equal ids, on every rank.
        cls2: Captions for CLS2, likewise.
        cls2_ids_T: As above.
        names: The distinct names in the batch's captions, in prompts; empty if the data has none.
        name_ids_U: int64; equal names have equal ids, on every rank.
        present_BU: bool; the names in each image's caption.
        unnamed: Further drawings, for the image backbone's terms; None if the data has none.
        cells: Targets of a teacher's space; None for other methods.
    """

    pixels_B3HW: Tensor
    locals_CB3hw: Tensor
    captioned_B: Tensor
    cls1: TextBatch
    cls1_ids_T: Tensor
    cls2: TextBatch
    cls2_ids_T: Tensor
    names: TextBatch
    name_ids_U: Tensor
    present_BU: Tensor
    unnamed: UnnamedDrawings | None = None
    cells: TeacherCells | None = None


def with_unit_pixels(batch: Batch) -> Batch:
    """The same batch with float32 pixels in [0, 1], on its device."""
    unnamed = batch.unnamed
    if unnamed is not None:
        unnamed = replace(unnamed, pixels_E3hw=_unit(unnamed.pixels_E3hw))
    return replace(
        batch,
        pixels_B3HW=_unit(batch.pixels_B3HW),
        locals_CB3hw=_unit(batch.locals_CB3hw),
        unnamed=unnamed,
    )


def _unit(pixels: Tensor) -> Tensor:
    return pixels.float().div_(255.0) if pixels.dtype == torch.uint8 else pixels


NO_TEXTS = TextBatch(
    token_ids_BL=torch.zeros((0, 1), dtype=torch.int64),
    mask_BL=torch.zeros((0, 1), dtype=torch.int64),
)


def tokenize(tokenizer: Tipsv2Tokenizer, texts: Sequence[str]) -> TextBatch:
    """Tokenise texts, cut at 64 tokens, padded to the longest; [0, 1] without texts."""
    if not texts:
        return NO_TEXTS
    encoded = tokenizer(
        list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )
    return TextBatch(token_ids_BL=encoded["input_ids"], mask_BL=encoded["attention_mask"])


def text_ids(texts: Sequence[str]) -> Tensor:
    """Ids of texts by their content: int64 [T], equal for equal texts on every rank."""
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return torch.tensor([int.from_bytes(d, "big", signed=True) for d in digests], dtype=torch.int64)


def collate(
    chosen: Sequence[tuple[str, str] | None],
    names_by_image: Sequence[Sequence[str]],
    tokenizer: Tipsv2Tokenizer,
    *,
    step: int,
    crops: tuple[Tensor, Tensor],
    unnamed: UnnamedDrawings | None = None,
) -> Batch:
    """Make a batch.

    Args:
        chosen: The captions of each image for CLS1 and CLS2; None for an image without captions.
        names_by_image: The names of what each image shows.
        tokenizer: The student's tokenizer.
        step: A name's prompt depends on the step and the name only, so it is the same on every
            rank.
        crops: Global crops [B, 3, H, W] and local crops [C, B, 3, h, w]; see `uncropped`.
        unnamed: Further drawings.
    """
    pairs = [pair for pair in chosen if pair is not None]
    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    names = sorted({name for row in names_by_image for name in row})
    present = [[name in row for name in names] for row in names_by_image]
    return Batch(
        pixels_B3HW=crops[0],
        locals_CB3hw=crops[1],
        captioned_B=torch.tensor([pair is not None for pair in chosen]),
        cls1=tokenize(tokenizer, first),
        cls1_ids_T=text_ids(first),
        cls2=tokenize(tokenizer, second),
        cls2_ids_T=text_ids(second),
        names=tokenize(tokenizer, [_prompt(name, step) for name in names]),
        name_ids_U=text_ids(names),
        present_BU=torch.tensor(present, dtype=torch.bool).reshape(len(present), len(names)),
        unnamed=unnamed,
    )


def uncropped(pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Whole images, and no local crops."""
    return pixels_B3HW, pixels_B3HW.new_zeros((0, *pixels_B3HW.shape))


def _prompt(name: str, step: int) -> str:
    """A prompt with the name: the bare name half of the time, else one of nine templates."""
    rng = np.random.default_rng((step, *name.encode()))
    templates = (*TEMPLATES["tcl"], *(["{}"] * len(TEMPLATES["tcl"])))
    return templates[rng.integers(len(templates))].format(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunShare:
    """A rank's share of a run: batches of `batch_size` images in each of `num_steps` steps."""

    batch_size: int
    num_steps: int
    rank: int = 0
    num_ranks: int = 1

    def places(self, step: int, count: int | None = None) -> range:
        """Places of a step's images, or of `count` of another kind, in the stream of all ranks."""
        count = self.batch_size if count is None else count
        first = (step * self.num_ranks + self.rank) * count
        return range(first, first + count)


def prefetch(
    batches: Dataset[T], steps: range, *, num_workers: int, per_worker: int = 4
) -> DataLoader[T]:
    """Iterate over the batches of some steps, made ahead by worker processes if there are any."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=num_workers,
        prefetch_factor=per_worker if num_workers else None,
        worker_init_fn=_begin_loading,
    )


def _begin_loading(_worker: int) -> None:
    """Initialise a worker process: one thread, and a process group of its own.

    A terminal's Ctrl-C and torchrun's SIGTERM go to a whole process group, and would end this
    process while its rank still finishes a step and saves. torch ends it together with its rank.
    """
    torch.set_num_threads(1)
    os.setpgid(0, 0)
