"""The manifest of a model package (`tipserve.json`), written by training and read by serving.

`model.package` reads, hashes and checks the folder itself.
"""

import hashlib
import math
import re
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from model.graphs import Precision

MANIFEST_NAME = "tipserve.json"
CARD: Final = "README.md"
# Reference outputs; see `model.parity.recorded`. Packages of earlier versions have none.
RECORDED_FILE: Final = "reference.safetensors"
# Weights that only torch reads. A package serves without them.
TORCH_FILE: Final = "model.safetensors"
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Output = Literal["patches", "values", "cls1", "cls2", "text", "depth", "normals", "segmentation"]
CpuRuntime = Literal["onnx", "openvino"]
Taps = Literal["blocks", "embeddings"]
Quality = Literal["published", "fast", "fine"]
Background = Literal["none", "auto"]
PositiveInt = Annotated[int, Field(gt=0)]

# Of models whose manifest says nothing else.
BACKGROUND_LEVEL: Final = 0.65
LEAST_COSINE: Final = 0.0

# Fields of `ParityEntry` that each field of `ParityLimits` bounds, from above (max) or below (min).
BOUNDED: Final[dict[str, tuple[str, ...]]] = {
    "max_abs_diff": ("max_abs_diff",),
    "max_relative_diff": ("max_relative_diff",),
    "max_length_error": ("max_length_error",),
    "min_cosine": ("min_cosine_cls", "min_cosine_patches"),
    "min_mean_cosine": ("mean_cosine_cls", "mean_cosine_patches"),
    "min_mask_agreement": ("mask_agreement",),
    "max_depth_error": ("depth_error",),
    "max_normals_degrees": ("normals_degrees",),
}


class ManifestPart(BaseModel):
    """Base of all parts of the manifest: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileEntry(ManifestPart):
    """Digest and length of one file of the package."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=0)]


class ZeroShot(ManifestPart):
    """Defaults of zero-shot segmentation: best on validation data, or as published.

    `mode` is whether the model sees an image whole or in overlapping windows, `quality` how cosines
    of patches become those of pixels. With `background` "auto" a pixel is background if its class
    has a cosine below `background_level`, from 0 for the least to 1 for the largest cosine of the
    class in the image; a class whose largest cosine is below `least_cosine` is absent. The
    confidence in a mask is the logistic function of `confidence_offset` plus `confidence_slope`
    times the difference between the mean cosines with its class in the mask and outside of it;
    without a slope it is not known.
    """

    features: Literal["values", "patches"] = "values"
    templates: Literal["none", "tcl"] = "none"
    mode: Literal["whole", "slide"] = "whole"
    scaling: Literal["bilinear", "bicubic"] = "bilinear"
    # Defaults are left out, so that earlier versions read the package.
    quality: Annotated[Quality, Field(exclude_if=lambda name: name == "published")] = "published"
    background: Annotated[Background, Field(exclude_if=lambda name: name == "none")] = "none"
    background_level: Annotated[
        float, Field(ge=0, le=1, exclude_if=lambda level: level == BACKGROUND_LEVEL)
    ] = BACKGROUND_LEVEL
    least_cosine: Annotated[
        float, Field(ge=-1, le=1, exclude_if=lambda cosine: cosine == LEAST_COSINE)
    ] = LEAST_COSINE
    confidence_offset: Annotated[float, Field(exclude_if=lambda offset: offset == 0)] = 0
    confidence_slope: Annotated[float, Field(ge=0, exclude_if=lambda slope: slope == 0)] = 0


# The paper's protocol, for released weights.
# Source: google-deepmind/tips, `pytorch/TIPS_zeroshot_segmentation.ipynb`.
PUBLISHED_ZERO_SHOT: Final = ZeroShot(
    features="values", templates="tcl", mode="slide", scaling="bicubic"
)


class ParityLimits(ManifestPart):
    """Limits for a graph on one backend, as in `BOUNDED`; None where there is no limit."""

    max_abs_diff: Annotated[float, Field(gt=0)] | None = None
    max_relative_diff: Annotated[float, Field(gt=0)] | None = None
    max_length_error: Annotated[float, Field(gt=0)] | None = None
    min_cosine: float | None = None
    min_mean_cosine: float | None = None
    min_mask_agreement: float | None = None
    max_depth_error: Annotated[float, Field(gt=0)] | None = None
    max_normals_degrees: Annotated[float, Field(gt=0)] | None = None


class ParityEntry(ManifestPart):
    """Difference between a graph on one backend and the model in float32.

    `sizes` are (batch, height, width) in pixels for images, (batch, tokens) for texts; `worst_size`
    is that of `max_relative_diff`, the length of an embedding's difference by the embedding's own
    length, or, for dense maps, the largest difference by the map's root mean square. Differences
    are the largest over all inputs. Cosines are the lowest and the mean, of global and text
    embeddings (`..._cls`), and of patch and value embeddings. `mask_agreement` is the share of
    pixels with the same class; `clear_mask_agreement` counts only pixels whose best two cosines
    differ clearly. `depth_error` is the mean of |difference| / depth, `normals_degrees` the mean
    angle. `is_finite` is false if an output had NaN or infinity, which the other numbers omit.
    """

    file: str
    runtime: str
    precision: Precision
    reference: str
    sizes: list[tuple[int, ...]]
    worst_size: tuple[int, ...] = ()
    is_finite: bool = True
    max_abs_diff: Annotated[float, Field(ge=0)]
    max_relative_diff: Annotated[float, Field(ge=0)] | None = None
    max_length_error: Annotated[float, Field(ge=0)] | None = None
    min_cosine_cls: float | None = None
    mean_cosine_cls: float | None = None
    min_cosine_patches: float | None = None
    mean_cosine_patches: float | None = None
    mask_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    clear_mask_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    depth_error: Annotated[float, Field(ge=0)] | None = None
    normals_degrees: Annotated[float, Field(ge=0)] | None = None
    limits: ParityLimits

    @property
    def passed(self) -> bool:
        """Whether all limits hold; false without any limit, and with NaN."""
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """Each violated limit as a phrase with the number."""
        if not self.is_finite:
            return ("an output is not finite",)
        limits: dict[str, float] = self.limits.model_dump(exclude_none=True)
        found = [] if limits else ["it has no limit to keep"]
        for limit, bound in limits.items():
            numbers = {name: getattr(self, name) for name in BOUNDED[limit]}
            measured = {name: number for name, number in numbers.items() if number is not None}
            if not measured:
                found.append(f"{limit} {bound:.6g} has nothing measured to hold")
            for name, number in measured.items():
                if not (number <= bound if limit.startswith("max") else number >= bound):
                    found.append(f"{name} is {number:.6g}, {limit} {bound:.6g}")
        return tuple(found)


class ScoreEntry(ManifestPart):
    """One measured number with its 95 % interval, as printed (percent for mIoU and accuracy).

    `row` is what was measured: "student", "teacher", "random", or a baseline. `count` is the number
    of examples.
    """

    task: str
    split: str
    row: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    count: Annotated[int, Field(ge=0)]


class Manifest(ManifestPart):
    """Everything about a model package that its other files do not state.

    Sizes are sides in pixels and multiples of `size_multiple`, `shape_buckets` are (height, width).
    `num_taps` is the number of blocks that dense heads read; with 0 the graph of each head has its
    own vision tower, as earlier versions wrote it. With `taps` "embeddings" the heads read cls1 and
    patch_embeddings as their only tap. `cpu_runtime` computes float32 on CPUs if it is installed,
    and `cpu_precision` is taken there with it, where the package has such a graph, proven, and the
    CPU gains by it; None leaves the choice to the service.
    """

    format_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=MODEL_NAME)]
    variant: str
    embed_dim: PositiveInt
    patch_size: PositiveInt = 14
    native_size: PositiveInt
    min_size: PositiveInt
    max_size: PositiveInt
    size_multiple: PositiveInt = 14
    shape_buckets: Annotated[list[tuple[PositiveInt, PositiveInt]], Field(min_length=1)]
    max_text_tokens: PositiveInt = 64
    temperature: Annotated[float, Field(gt=0)]
    outputs: Annotated[list[Output], Field(min_length=1)]
    # Left out if zero, so that earlier versions read a package without heads.
    num_taps: Annotated[int, Field(ge=0, exclude_if=lambda number: not number)] = 0
    # These are left out likewise.
    segmentation_labels: Annotated[list[str], Field(exclude_if=lambda names: not names)] = []
    taps: Annotated[Taps, Field(exclude_if=lambda taps: taps == "blocks")] = "blocks"
    cpu_runtime: Annotated[CpuRuntime | None, Field(exclude_if=lambda name: name is None)] = None
    cpu_precision: Annotated[Precision | None, Field(exclude_if=lambda name: name is None)] = None
    zero_shot: ZeroShot = ZeroShot()
    files: dict[str, FileEntry] = {}
    parity: list[ParityEntry] = []
    scores: list[ScoreEntry] = []
    provenance: dict[str, JsonValue] = {}
    licence: Annotated[str, Field(min_length=1)]

    @property
    def digest(self) -> str:
        """SHA-256 of the digests of all files but the card, which does not change answers."""
        files = sorted(self.files.items())
        lines = (f"{name} {entry.sha256}\n" for name, entry in files if name != CARD)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def map_multiple(self) -> int:
        """Sides of images for dense heads are multiples of it: the heads halve the patch grid."""
        return math.lcm(self.size_multiple, 2 * self.patch_size)

    @property
    def map_buckets(self) -> list[tuple[int, int]]:
        """The `shape_buckets` for dense heads, without duplicates."""
        shapes = ((self.map_side(h), self.map_side(w)) for h, w in self.shape_buckets)
        return list(dict.fromkeys(shapes))

    def map_side(self, side: int) -> int:
        """Round a side down to `map_multiple`; at least one multiple."""
        return max(1, side // self.map_multiple) * self.map_multiple

    @field_validator("files")
    @classmethod
    def _names_stay_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            check_file_name(name)
        return files

    @model_validator(mode="after")
    def _sizes_fit_together(self) -> Self:
        if self.size_multiple % self.patch_size:
            raise ValueError(
                f"size_multiple {self.size_multiple} is no multiple of patch_size {self.patch_size}"
            )
        sides = [self.native_size, self.min_size, self.max_size]
        sides += [side for bucket in self.shape_buckets for side in bucket]
        for side in sides:
            if side % self.size_multiple:
                raise ValueError(f"size {side} is no multiple of {self.size_multiple}")
            if not self.min_size <= side <= self.max_size:
                raise ValueError(f"size {side} is outside {self.min_size} to {self.max_size}")
        return self

    @model_validator(mode="after")
    def _embeddings_are_one_tap(self) -> Self:
        if self.taps == "embeddings" and self.num_taps != 1:
            raise ValueError(f"heads that read embeddings have one tap, not {self.num_taps}")
        return self


def check_file_name(name: str) -> None:
    """ValueError unless a name is a plain relative path in POSIX form, not the manifest's own."""
    path = PurePosixPath(name)
    if name == MANIFEST_NAME or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file name {name!r} must lie inside the package")
    if name != path.as_posix() or name in {"", "."} or "\\" in name or ":" in path.parts[0]:
        raise ValueError(f"file name {name!r} must be a normalised relative POSIX path")


def check_model_name(name: str) -> None:
    """ValueError unless the name of a model matches `MODEL_NAME`."""
    if re.fullmatch(MODEL_NAME, name) is None:
        raise ValueError(
            f"a model cannot be named {name!r}; use letters, digits, '.', '_' and '-', and begin "
            "with a letter or digit"
        )
