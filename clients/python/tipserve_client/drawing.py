"""Draws masks: over an image, in a notebook, and by matplotlib. Imports Pillow when it draws.

Shape legend: H W pixels, K classes.
"""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tipserve_client.images import ImageInput, encode_image, to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

    from tipserve_client.results import Segmentation

OPACITY: Final = 0.4
OUTLINE_PX: Final = 2
# Longest side of a mask in a notebook.
SHOWN_PX: Final = 512


def color_table(colors: Sequence[str]) -> NDArray[np.uint8]:
    """RGB by label, [K + 1, 3], from `#rrggbb`; label 0 is black."""
    rows = [bytes.fromhex(color.lstrip("#")) for color in ("#000000", *colors)]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 3)


def near_edge(labels_HW: NDArray[np.uint16], width: int) -> NDArray[np.bool_]:
    """Pixels with another label in their row or column, at most `width` pixels away."""
    near_HW = np.zeros(labels_HW.shape, np.bool_)
    for labels, near in ((labels_HW, near_HW), (labels_HW.T, near_HW.T)):
        for step in range(1, width + 1):
            differs = labels[step:] != labels[:-step]
            near[step:] |= differs
            near[:-step] |= differs
    return near_HW


def _open(image: ImageInput) -> "Image":
    """The image in RGB, turned as its file says."""
    from PIL import Image, ImageOps  # noqa: PLC0415 - no dependency of the client

    if isinstance(image, np.ndarray):
        return Image.fromarray(to_pixels(image, "image")).convert("RGB")
    with Image.open(io.BytesIO(encode_image(image, "image"))) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


def overlay(mask: "Segmentation", image: ImageInput, *, opacity: float, outline_px: int) -> "Image":
    """The image with tinted and outlined classes, as `Segmentation.overlay` says."""
    from PIL import Image  # noqa: PLC0415

    below = _open(image)
    labels_HW = mask.labels
    if labels_HW.shape != below.size[::-1]:
        rows, columns = (
            np.arange(length) * size // length
            for length, size in zip(below.size[::-1], labels_HW.shape, strict=True)
        )
        labels_HW = labels_HW[rows[:, None], columns]
    colors = Image.fromarray(color_table([one.color for one in mask.classes])[labels_HW])
    found = Image.blend(below, colors, opacity)
    found.paste(below, mask=Image.fromarray(labels_HW == 0))
    outline_HW = near_edge(labels_HW, outline_px) & (labels_HW > 0)
    found.paste(colors, mask=Image.fromarray(outline_HW))
    return found


def to_html(mask: "Segmentation") -> str:
    """The mask in colours, and a legend."""
    step = -(-max(mask.labels.shape) // SHOWN_PX)
    colors = color_table([one.color for one in mask.classes])
    png = encode_image(colors[mask.labels[::step, ::step]])
    rows = [("background", "#000000", mask.background_share)] * (mask.background_share > 0)
    rows += [(one.name, one.color, one.area_share) for one in mask.classes]
    legend = "".join(
        f'<span style="margin-right:1em;opacity:{1 if share else 0.5}">'
        f'<span style="background:{escape(color)}">&emsp;</span> '
        f"{escape(name)} {100 * share:.1f} %</span>"
        for name, color, share in rows
    )
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<div><img alt="mask" src="{source}"></div><div>{legend}</div>'


def plot(mask: "Segmentation", image: ImageInput | None, axes: Any) -> Any:
    """Draw on matplotlib's axes, as `Segmentation.plot` says."""
    from matplotlib import pyplot  # noqa: PLC0415 - no dependency of the client
    from matplotlib.patches import Patch  # noqa: PLC0415

    axes = pyplot.gca() if axes is None else axes
    colors = color_table([one.color for one in mask.classes])
    axes.imshow(colors[mask.labels] if image is None else mask.overlay(image))
    # A dollar would start a formula.
    patches = [
        Patch(color=one.color, label=one.name.replace("$", r"\$"))
        for one in mask.classes
        if one.area_share
    ]
    axes.legend(handles=patches)
    axes.set_axis_off()
    return axes
