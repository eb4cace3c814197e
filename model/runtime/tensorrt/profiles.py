"""Options of TensorRT engines, and the input shapes that an engine is built for and runs.

Shapes: B batch, L tokens, H W pixels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model.graphs import Part
from model.manifest import Manifest
from model.runtime.tensorrt.byte_pixels import BYTE_PIXELS

# Where engines are kept below the program's cache.
CACHE_ROOM: Final = "tensorrt"
DEFAULT_CACHE_FOLDER: Final = Path("~/.cache/tipserve") / CACHE_ROOM
# Items of one run, and items that kernels are tuned for; images, and texts.
MAX_BATCH: Final = 64
BEST_BATCH: Final = 8
BEST_TEXTS: Final = 32
# Most class names and captions have no more tokens than this.
SHORT_TEXT: Final = 16
TEXT_INPUTS: Final = ("input_ids", "attention_mask")
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRtOptions:
    """How engines are built, found and run.

    Attributes:
        max_batch_patches: Patches of the largest batch; None for as many as `MAX_BATCH` images.
        tf32: Whether factors of float32 products may be rounded to 10 bits (TF32).
        cache_folder: Folder of built engines; `~` is the user's home.
        use_cuda_graphs: Launch the kernels of a run as one CUDA graph.
    """

    max_batch_patches: int | None = None
    tf32: bool = False
    cache_folder: Path = DEFAULT_CACHE_FOLDER
    use_cuda_graphs: bool = True

    def __post_init__(self) -> None:
        """Check the range."""
        if self.max_batch_patches is not None and self.max_batch_patches < 1:
            raise ValueError("the largest batch has at least one patch")


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes of one input, axis by axis; kernels are tuned for `best`. The first axis is B."""

    smallest: Shape
    best: Shape
    largest: Shape

    def __post_init__(self) -> None:
        """Check the order on each axis."""
        axes = zip(self.smallest, self.best, self.largest, strict=True)
        if not all(1 <= low <= best <= high for low, best, high in axes):
            raise ValueError(
                f"no range of shapes: {self.smallest} to {self.largest}, best {self.best}"
            )

    @property
    def is_text(self) -> bool:
        """Whether these are [B, L], which are padded to the largest L."""
        return len(self.largest) == 2

    def has_item(self, shape: Shape) -> bool:
        """Whether an item of this shape is in the range, or can be padded; B is ignored."""
        smallest = (1, 1) if self.is_text else self.smallest
        axes = list(zip(smallest, shape, self.largest, strict=False))[1:]
        return len(shape) == len(self.largest) and all(a <= b <= c for a, b, c in axes)


# Ranges by the name of the input.
Profile = Mapping[str, ShapeRange]


def profiles_for(
    part: Part, manifest: Manifest, max_batch_patches: int | None = None
) -> tuple[Profile, ...]:
    """All profiles of a graph's engine, the narrowest first; see `TensorRtOptions`.

    Each shape bucket of the manifest has one in which only the batch varies, and so have short and
    long texts. Images of other sizes share the last one and run one at a time: memory for attention
    grows with the fourth power of the side.
    """
    if part == "text":
        lengths = sorted({min(SHORT_TEXT, manifest.max_text_tokens), manifest.max_text_tokens})
        return tuple(
            dict.fromkeys(TEXT_INPUTS, ShapeRange((1, n), (BEST_TEXTS, n), (MAX_BATCH, n)))
            for n in lengths
        )
    unit = manifest.size_multiple if part == "vision" else manifest.map_multiple
    sizes = [s for s in manifest.shape_buckets if all(side % unit == 0 for side in s)]
    images = [_bucket(size_hw, manifest, max_batch_patches) for size_hw in dict.fromkeys(sizes)]
    low, high = -(-manifest.min_size // unit) * unit, manifest.max_size // unit * unit
    best = min(high, max(low, manifest.native_size // unit * unit))
    images.append(ShapeRange(*((1, 3, side, side) for side in (low, best, high))))
    if part == "vision" or not manifest.num_taps:
        return tuple({BYTE_PIXELS: span} for span in images)
    return tuple(_taps(span, manifest) for span in images)


def _bucket(
    size_hw: tuple[int, int], manifest: Manifest, max_batch_patches: int | None
) -> ShapeRange:
    most = MAX_BATCH
    if max_batch_patches is not None:
        fitting = max_batch_patches // (math.prod(size_hw) // manifest.patch_size**2)
        most = min(MAX_BATCH, rounded_up(max(1, fitting)))
    return ShapeRange(*((batch, 3, *size_hw) for batch in (1, min(BEST_BATCH, most), most)))


def _taps(pixels: ShapeRange, manifest: Manifest) -> Profile:
    """What a head reads of images in this range."""
    count, width, patch = manifest.num_taps, manifest.embed_dim, manifest.patch_size
    shapes = (pixels.smallest, pixels.best, pixels.largest)
    return {
        "tap_cls": ShapeRange(*((batch, count, width) for batch, *_ in shapes)),
        "tap_patches": ShapeRange(
            *((batch, count, h // patch, w // patch, width) for batch, _, h, w in shapes)
        ),
    }


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int | None:
    """Index of the first profile for items of these shapes; None if there is none."""
    for index, profile in enumerate(profiles):
        if profile.keys() >= shapes.keys() and all(
            profile[name].has_item(shape) for name, shape in shapes.items()
        ):
            return index
    return None


def has_one_item_shape(profile: Profile) -> bool:
    """Whether all items of a profile have one shape, so that only the batch varies."""
    return all(span.is_text or span.smallest[1:] == span.largest[1:] for span in profile.values())


def largest_batch(profile: Profile) -> int:
    """The largest batch of one run."""
    return min(span.largest[0] for span in profile.values())


def batches(profile: Profile) -> list[int]:
    """The batches that run, the smallest first: powers of two, and the largest."""
    most = largest_batch(profile)
    return sorted({min(1 << power, most) for power in range(most.bit_length() + 1)})


def rounded_up(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (number - 1).bit_length()


def runs_of(num_items: int, most: int) -> Iterator[tuple[slice, int]]:
    """Cut a batch into runs: the items of each, and the batch that it is rounded up to."""
    for first in range(0, num_items, most):
        count = min(most, num_items - first)
        yield slice(first, first + count), min(most, rounded_up(count))
