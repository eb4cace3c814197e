"""The input shapes that an engine is built for and runs.

Shapes: B batch, L tokens, H W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from model.graphs import Part
from model.manifest import Manifest
from model.runtime.tensorrt.byte_pixels import BYTE_PIXELS

TEXT_INPUTS: Final = ("input_ids", "attention_mask")
# Items of one run, and items that kernels are tuned for; images, and texts.
MAX_BATCH: Final = 64
BEST_BATCH: Final = 8
BEST_TEXTS: Final = 32
# Most class names and captions have no more tokens than this.
SHORT_TEXT: Final = 16
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes of one input; kernels are tuned for `best`. The first axis is B."""

    smallest: Shape
    best: Shape
    largest: Shape

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
    """All profiles of a graph's engine, the narrowest first.

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
    images = []
    for height, width in dict.fromkeys(manifest.shape_buckets):
        if height % unit or width % unit:
            continue
        most = MAX_BATCH
        if max_batch_patches is not None:
            fitting = max_batch_patches // (height * width // manifest.patch_size**2)
            most = min(MAX_BATCH, rounded_up(max(1, fitting)))
        batches_of_profile = (1, min(BEST_BATCH, most), most)
        images.append(ShapeRange(*((batch, 3, height, width) for batch in batches_of_profile)))
    low, high = -(-manifest.min_size // unit) * unit, manifest.max_size // unit * unit
    best = min(high, max(low, manifest.native_size // unit * unit))
    images.append(ShapeRange(*((1, 3, side, side) for side in (low, best, high))))
    if part == "vision" or not manifest.num_taps:
        return tuple({BYTE_PIXELS: span} for span in images)
    return tuple(_taps(span, manifest) for span in images)


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
    """The largest batch of one run, a power of two."""
    return min(span.largest[0] for span in profile.values())


def batches(profile: Profile) -> list[int]:
    """The batches that run: powers of two, the smallest first."""
    return [1 << power for power in range(largest_batch(profile).bit_length())]


def rounded_up(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (number - 1).bit_length()


def runs_of(num_items: int, most: int) -> Iterator[tuple[slice, int]]:
    """Cut a batch into runs: the items of each, and the batch that it is rounded up to."""
    for first in range(0, num_items, most):
        count = min(most, num_items - first)
        yield slice(first, first + count), rounded_up(count)
