"""Options of TensorRT engines, and the input shapes that an engine is built for.

Shapes: B batch, L tokens, H W pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model.graphs import Part
from model.manifest import Manifest

MAX_OPTIMIZATION_LEVEL = 5
# Where engines are kept below the program's cache.
CACHE_ROOM = "tensorrt"
DEFAULT_CACHE_FOLDER = Path("~/.cache/tipserve") / CACHE_ROOM
# Most class names and captions have no more tokens than this.
SHORT_TEXT = 16
TEXT_INPUTS = ("input_ids", "attention_mask")
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What an engine is built for. Another value means another engine.

    Attributes:
        max_batch: Largest number of images in one run; larger batches are split.
        best_batch: Number of images that kernels are tuned for.
        max_texts: As `max_batch`, for texts.
        best_texts: As `best_batch`, for texts.
        workspace_bytes: Scratch memory of one layer on the GPU; None for no limit.
        optimization_level: How long the builder searches for faster kernels, 0 to 5; TensorRT's
            default is 3.
        tf32: Whether factors of float32 products may be rounded to 10 bits (TF32).
        is_hardware_compatible: Build slower engines that also run on other GPUs from Ampere on.
    """

    max_batch: int = 64
    best_batch: int = 8
    max_texts: int = 256
    best_texts: int = 32
    workspace_bytes: int | None = None
    optimization_level: int = 3
    tf32: bool = False
    is_hardware_compatible: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        for what, best, most in (
            ("images", self.best_batch, self.max_batch),
            ("texts", self.best_texts, self.max_texts),
        ):
            if not 1 <= best <= most:
                raise ValueError(
                    f"engines are made for at least one and at most {most} {what}, not {best}; "
                    "raise the largest batch or lower the one that kernels are chosen for"
                )
        if not 0 <= self.optimization_level <= MAX_OPTIMIZATION_LEVEL:
            raise ValueError(
                f"the optimization level is 0 to {MAX_OPTIMIZATION_LEVEL}, "
                f"not {self.optimization_level}"
            )
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise ValueError("the workspace needs at least one byte; leave it out for no limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRtOptions:
    """How engines are found and run.

    Attributes:
        engine: Options of the build.
        cache_folder: Folder of built engines; `~` is the user's home.
        use_package_engines: Use an engine of the package if it has one for this GPU and version. An
            engine is compiled code: switch this off for untrusted packages.
        use_cuda_graphs: Launch a shape's kernels as one CUDA graph from its third run on.
        max_shapes: Number of prepared shapes per graph; the least recently used one is freed.
        device_index: Index among the GPUs that the process sees. To serve several GPUs, run one
            process per GPU with `CUDA_VISIBLE_DEVICES`, and leave this at 0.
    """

    engine: EngineOptions = field(default_factory=EngineOptions)
    cache_folder: Path = DEFAULT_CACHE_FOLDER
    use_package_engines: bool = True
    use_cuda_graphs: bool = True
    max_shapes: int = 16
    device_index: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.max_shapes < 1:
            raise ValueError(f"at least one shape must stay prepared, not {self.max_shapes}")
        if self.device_index < 0:
            raise ValueError(f"GPUs are counted from 0, not {self.device_index}")


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes of one input, axis by axis from `smallest` to `largest`; the first axis is the batch.

    Attributes:
        smallest: Lower end of each axis.
        best: Shape that kernels are tuned for.
        largest: Upper end of each axis.
    """

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

    def has_item(self, shape: Shape) -> bool:
        """Whether an item of this shape is in the range; the batch is ignored."""
        return len(shape) == len(self.largest) and all(
            low <= side <= high
            for low, side, high in zip(self.smallest[1:], shape[1:], self.largest[1:], strict=True)
        )

    @property
    def num_item_shapes(self) -> int:
        """Number of shapes that an item may have."""
        axes = zip(self.smallest[1:], self.largest[1:], strict=True)
        return math.prod(high - low + 1 for low, high in axes)


# Ranges by the name of the input.
Profile = Mapping[str, ShapeRange]


def profiles_for(part: Part, manifest: Manifest, options: EngineOptions) -> tuple[Profile, ...]:
    """All profiles of a graph's engine.

    Each shape bucket of the manifest has a profile in which only the batch varies. Other sizes
    share two wider profiles.

    Args:
        part: Graph of the package.
        manifest: Manifest of the package, for its buckets and limits.
        options: Options with the batches.
    """
    if part == "text":
        return _text_profiles(manifest.max_text_tokens, options)
    if part == "vision":
        return _image_profiles(manifest, manifest.size_multiple, options)
    profiles = _image_profiles(manifest, manifest.map_multiple, options)
    if not manifest.num_taps:
        return profiles
    return tuple(_taps(profile["pixel_values"], manifest) for profile in profiles)


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int | None:
    """Index of the narrowest profile with items of these shapes; None if there is none."""
    fitting = [
        (max(ranges[name].num_item_shapes for name in shapes), index)
        for index, ranges in enumerate(profiles)
        if all(name in ranges and ranges[name].has_item(shapes[name]) for name in shapes)
    ]
    return min(fitting)[1] if fitting else None


def split_batch(num_items: int, most: int) -> list[int]:
    """Cut a batch into as few runs as possible, of nearly the same size."""
    num_runs = math.ceil(num_items / most)
    return [
        num_items * (run + 1) // num_runs - num_items * run // num_runs for run in range(num_runs)
    ]


def _image_profiles(manifest: Manifest, unit: int, options: EngineOptions) -> tuple[Profile, ...]:
    buckets = [
        (height, width)
        for height, width in manifest.shape_buckets
        if height % unit == 0 and width % unit == 0
    ]
    exact = [_images((h, h, h), (w, w, w), options) for h, w in dict.fromkeys(buckets)]
    smallest, largest = _up(manifest.min_size, unit), _down(manifest.max_size, unit)
    native = max(smallest, _down(manifest.native_size, unit))
    longest = max(
        native, *(_down(side, unit) for bucket in manifest.shape_buckets for side in bucket)
    )
    usual = (smallest, native, longest)
    # Large images run one at a time: memory for attention grows with the fourth power of the side,
    # and a batch of large images is no faster than single images.
    single = EngineOptions(max_batch=1, best_batch=1)
    wide = (smallest, min(2 * native, largest), largest)
    return (*exact, _images(usual, usual, options), _images(wide, wide, single))


def _images(
    heights: tuple[int, int, int], widths: tuple[int, int, int], options: EngineOptions
) -> Profile:
    batches = (1, options.best_batch, options.max_batch)
    low, best, high = (
        (batch, 3, height, width)
        for batch, height, width in zip(batches, heights, widths, strict=True)
    )
    return {"pixel_values": ShapeRange(low, best, high)}


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


def _text_profiles(max_tokens: int, options: EngineOptions) -> tuple[Profile, ...]:
    def texts(best_length: int, most: int) -> Profile:
        best, largest = (options.best_texts, best_length), (options.max_texts, most)
        return dict.fromkeys(TEXT_INPUTS, ShapeRange((1, 1), best, largest))

    every_length = texts(max(1, max_tokens // 2), max_tokens)
    if max_tokens <= SHORT_TEXT:
        return (every_length,)
    return texts(SHORT_TEXT // 2, SHORT_TEXT), every_length


def _up(side: int, unit: int) -> int:
    return math.ceil(side / unit) * unit


def _down(side: int, unit: int) -> int:
    return side // unit * unit
