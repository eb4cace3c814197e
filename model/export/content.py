"""What a package is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import Tipsv2DptForDensePrediction, Tipsv2Model, Tipsv2Tokenizer

from model.graphs import Precision
from model.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackageContent:
    """A model, and how it is to be packaged.

    Attributes:
        model: In float32 and evaluation mode.
        tokenizer: Of its text tower.
        draft: The manifest without files and parity, as `model.export.sizes` drafts it.
        render_card: Makes the model card of the finished manifest.
        dense: Backbone and heads for depth, normals and segmentation; in float32.
        precisions: Of further graphs, beside those in fp32.
        calibration: A folder of images that show int8 what to expect; without it, those that
            come with this program.
    """

    model: Tipsv2Model
    tokenizer: Tipsv2Tokenizer
    draft: Manifest
    render_card: Callable[[Manifest], str]
    dense: Tipsv2DptForDensePrediction | None = None
    precisions: tuple[Precision, ...] = ()
    calibration: Path | None = None
