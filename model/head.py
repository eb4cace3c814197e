"""A head: classes of one's own for one package, as vectors that its embeddings are compared with.

The file is a safetensors file: `training` writes it, the service loads it beside the package.

Shape legend: K classes with the background class, D embedding width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from model.files import atomic_write
from model.graphs import VISION_FILE
from model.manifest import MODEL_NAME, Manifest

SUFFIX: Final = ".safetensors"
MAX_BYTES: Final = 64 * 1024 * 1024
HeadFeatures = Literal["values", "patches", "cls1"]


class HeadError(ValueError):
    """The file is no head, or belongs to another package."""


class HeadInfo(BaseModel):
    """What a head's file states beside the vectors.

    Attributes:
        names: Of the classes; the k-th has the label k, from 1.
        has_background: Whether one more vector stands for everything else, whose label is 0.
        features: The package's output that the vectors are compared with.
        temperature: Divisor of cosines in probabilities.
        model: Name of the package.
        vision_sha256: Digest of the package's vision graph in float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1] = 1
    names: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, pattern=r"\S")], ...],
        Field(min_length=1),
    ]
    has_background: bool = False
    features: HeadFeatures
    temperature: Annotated[float, Field(gt=0)]
    model: Annotated[str, Field(pattern=MODEL_NAME)]
    vision_sha256: str

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if len(set(self.names)) != len(self.names):
            raise ValueError("a name is given twice")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Classes of one package: a unit vector for each name, then the background's, if any."""

    info: HeadInfo
    classes_KD: NDArray[np.float32]

    def check(self, manifest: Manifest) -> None:
        """Check that the head was trained on a package; HeadError if it was another."""
        if self.info.vision_sha256 != vision_digest(manifest):
            raise HeadError(
                f"the head was trained on another vision graph ({self.info.model}) than that of "
                f"{manifest.name}; train it again on this package"
            )


def vision_digest(manifest: Manifest) -> str:
    """SHA-256 of a package's vision graph in float32; all its precisions are made from it.

    Raises:
        HeadError: The package has no such graph.
    """
    entry = manifest.files.get(VISION_FILE)
    if entry is None:
        raise HeadError(f"{manifest.name} has no {VISION_FILE}, which a head belongs to")
    return entry.sha256


def write_head(path: Path, head: Head) -> None:
    """Write a head's file, whole or not at all."""
    metadata = {"head": head.info.model_dump_json()}
    atomic_write(path, save({"classes": head.classes_KD}, metadata))


def read_head(path: Path) -> Head:
    """Read a head's file.

    Raises:
        HeadError: It is no head.
        OSError: It cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise HeadError(f"{path.name} is larger than {MAX_BYTES} bytes, which no head is")
    try:
        with safe_open(path, framework="numpy") as file:
            info = HeadInfo.model_validate_json((file.metadata() or {})["head"])
            classes_KD = file.get_tensor("classes")
    except (SafetensorError, KeyError, ValidationError) as error:
        raise HeadError(f"{path.name} is no head of `python -m training head`: {error}") from error
    num_vectors = len(info.names) + info.has_background
    if classes_KD.dtype != np.float32 or classes_KD.ndim != 2 or len(classes_KD) != num_vectors:
        raise HeadError(f"{path.name} must hold {num_vectors} vectors of float32")
    if not np.allclose(np.linalg.norm(classes_KD, axis=1), 1, atol=1e-3):
        raise HeadError(f"{path.name} holds vectors that are not of unit length")
    return Head(info, classes_KD)
