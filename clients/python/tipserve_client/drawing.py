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
# Opacity of black over the background; width of a black line within the one in the class's colour.
DIM: Final = 0.55
SHADE_PX: Final = 1
# The server's colours of the first classes, which are far apart.
BRIGHT: Final = (
    *("#4cc2ff", "#ffb13d", "#7ee787", "#ff7b9c"),
    *("#c59bff", "#ffe45c", "#4fe0d0", "#ff8f6b"),
)
# Distance in RGB between a colour and the mean of the image below: sky and light blue have 80.
LEAST_CONTRAST: Final = 150
# Rows and columns of the image of which the mean is taken, at most.
SAMPLE_SIDE: Final = 256
# Longest side of a mask in a notebook.
SHOWN_PX: Final = 512


def color_table(colors: Sequence[str]) -> NDArray[np.uint8]:
    """RGB by label, [K + 1, 3], from `#rrggbb`; label 0 is black."""
    rows = [bytes.fromhex(color.lstrip("#")) for color in ("#000000", *colors)]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 3)


def contrasting(
    colors: Sequence[str], labels_HW: NDArray[np.uint16], pixels_HW3: NDArray[np.uint8]
) -> list[str]:
    """Colours of classes 1, 2, ... that differ from the image below them, as the server's do.

    A class whose colour is close to the mean of its pixels, or is taken by a class before it,
    gets the bright colour that is farthest from that mean and not taken. Where more classes
    than bright colours are shown, all keep theirs.
    """
    step = -(-max(labels_HW.shape) // SAMPLE_SIDE)
    label_N = labels_HW[::step, ::step].ravel()
    pixel_N3 = pixels_HW3[::step, ::step].reshape(-1, 3)
    chosen, taken = list(colors), set[str]()
    shown = [label for label in np.unique(label_N).tolist() if label]
    if len(shown) > len(BRIGHT):
        return chosen
    for label in shown:
        mean_3 = pixel_N3[label_N == label].mean(axis=0)
        own, *free = (colors[label - 1], *(one for one in BRIGHT if one not in taken))
        rgb_C3 = color_table([own, *free])[1:].astype(np.float64)
        contrast_C = np.linalg.norm(rgb_C3 - mean_3, axis=1)
        if own in taken or contrast_C[0] < LEAST_CONTRAST:
            own = free[int(contrast_C[1:].argmax())]
        chosen[label - 1] = own
        taken.add(own)
    return chosen


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
    return _overlay(mask, _open(image), opacity, outline_px)[0]


def _overlay(
    mask: "Segmentation", below: "Image", opacity: float, outline_px: int
) -> tuple["Image", list[str]]:
    """The overlay, and the colours of the classes in it."""
    from PIL import Image  # noqa: PLC0415

    labels_HW = mask.labels
    if labels_HW.shape != below.size[::-1]:
        rows, columns = (
            np.arange(length) * size // length
            for length, size in zip(below.size[::-1], labels_HW.shape, strict=True)
        )
        labels_HW = labels_HW[rows[:, None], columns]
    colors = contrasting([one.color for one in mask.classes], labels_HW, np.asarray(below))
    painted = Image.fromarray(color_table(colors)[labels_HW])
    found = Image.blend(below, painted, opacity)
    dark = Image.blend(below, Image.new("RGB", below.size), DIM)
    found.paste(dark, mask=Image.fromarray(labels_HW == 0))
    if outline_px:
        lines: tuple[tuple[Image.Image | str, int], ...] = (
            ("black", outline_px + SHADE_PX),
            (painted, outline_px),
        )
        for line, width in lines:
            near_HW = near_edge(labels_HW, width) & (labels_HW > 0)
            found.paste(line, mask=Image.fromarray(near_HW))
    return found, colors


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
    colors = [one.color for one in mask.classes]
    shown: Any = color_table(colors)[mask.labels]
    if image is not None:
        shown, colors = _overlay(mask, _open(image), OPACITY, OUTLINE_PX)
    axes.imshow(shown)
    # A dollar would start a formula.
    patches = [
        Patch(color=color, label=one.name.replace("$", r"\$"))
        for one, color in zip(mask.classes, colors, strict=True)
        if one.area_share
    ]
    axes.legend(handles=patches)
    axes.set_axis_off()
    return axes
