"""The report as one HTML file without scripts and without other files."""

from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.files import atomic_write
from model.image_codec import ImageLimits, decode_image
from model.manifest import ScoreEntry
from tipserve_cli.evaluation.report import MODEL, class_scores, confused_classes, digits, numbers_of
from tipserve_cli.evaluation.results import Result, ShownMask
from tipserve_cli.local import colours
from tipserve_client import ModelInfo

PAGE: Final = "report.html"
MAX_CLASSES: Final = 20
MAX_LEGEND: Final = 8
SHOWN_SIDE: Final = 260
# The model has accepted the images before, so these only bound memory.
LIMITS: Final = ImageLimits(max_bytes=2**30, max_pixels=2**30)
STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1c1c; background: #fff; }
table { border-collapse: collapse; margin: .8rem 0; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #ddd; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; } figure img { max-width: 32%; margin-right: 1%; }
figcaption, .note { color: #555; font-size: 13px; }
i { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .8em; }
"""


def write_page(
    folder: Path, model: ModelInfo, results: Sequence[Result], entries: Sequence[ScoreEntry]
) -> None:
    """Write `report.html`."""
    parts = [part for result in results for part in _section(result, entries)]
    about = (
        f"{model.runtime}, {model.precision}, {model.device}; package {model.package_digest[:12]}"
    )
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Evaluation of {escape(model.name)}</title><style>{STYLE}</style>"
        f"<h1>Evaluation of {escape(model.name)}</h1><p class=note>{escape(about)}. "
        "Values without a unit are percent. Brackets are 95 % intervals over the choice of images."
        "</p>"
        f"{''.join(parts)}</html>\n"
    )
    atomic_write(folder / PAGE, page)


def _section(result: Result, entries: Sequence[ScoreEntry]) -> Iterator[str]:
    yield f"<h2>{escape(result.task)}: {escape(result.split)}</h2>"
    options = ", ".join(f"{name} {value}" for name, value in result.options.items())
    yield f"<p class=note>{len(result.examples)} images. {escape(options)}</p>"
    own = [one for one in entries if (one.task, one.split) == (result.task, result.split)]
    yield _table(("", "metric", "value", "95 % interval"), _score_rows(result, own))
    classes = class_scores(result)
    if classes:
        measure = result.scores[0].metric.replace("mIoU", "IoU").replace("top-1", "accuracy")
        yield f"<h3>Worst of {len(classes)} classes</h3>"
        worst = ((escape(name), f"{value:.1f}") for name, value in classes[:MAX_CLASSES])
        yield _table(("class", measure), worst)
    confused = confused_classes(result)
    if confused:
        yield "<h3>Most confused classes</h3>"
        rows = ((escape(truth), escape(called), f"{x:.1f}") for truth, called, x in confused)
        yield _table(("true class", "predicted class", "percent of the true class"), rows)
    if result.shown:
        yield "<h3>Best and worst masks</h3>"
        yield "<p class=note>Image, true mask, predicted mask. Black is no class.</p>"
        yield from (_figure(one, result.names) for one in result.shown)


def _score_rows(result: Result, entries: Iterable[ScoreEntry]) -> Iterator[tuple[str, ...]]:
    for entry in entries:
        name = f"<b>{MODEL}</b>" if entry.row == MODEL else escape(entry.row)
        yield name, escape(entry.metric), *numbers_of(entry)
    for one in result.published:
        name = f"{one.model} (published{f', {one.protocol}' if one.protocol else ''})"
        yield escape(name), escape(one.metric), f"{one.value:.{digits(one.metric)}f}", ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells; numbers are on the right."""
    titles = "".join(f"<th>{title}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{lines}</table>"


def _cell(text: str) -> str:
    is_number = text.lstrip("-").replace(".", "", 1).isdigit()
    return f"<td class=number>{text}</td>" if is_number else f"<td>{text}</td>"


def _figure(shown: ShownMask, names: Sequence[str]) -> str:
    """The image, the true mask and the predicted one, with a legend of the largest classes."""
    pixels = decode_image(shown.image.read(), LIMITS)
    masks = [_colours_of(mask_HW) for mask_HW in (shown.truth_HW, shown.called_HW)]
    images = "".join(
        f'<img alt="{alt}" src="data:image/png;base64,{_png(one, is_mask=alt != "image")}">'
        for alt, one in zip(("image", "true mask", "predicted mask"), (pixels, *masks), strict=True)
    )
    present = np.concatenate([shown.truth_HW.ravel(), shown.called_HW[shown.truth_HW >= 0]])
    counts_K = np.bincount(present[present >= 0], minlength=len(names))
    order = [k for k in np.argsort(-counts_K, kind="stable")[:MAX_LEGEND].tolist() if counts_K[k]]
    legend = "".join(
        f'<i style="background:#{bytes(colours.PALETTE[k % 255 + 1]).hex()}"></i>{escape(names[k])}'
        for k in order
    )
    caption = f"{escape(str(shown.image))}: mIoU {shown.miou:.1f}{legend}"
    return f"<figure>{images}<figcaption>{caption}</figcaption></figure>"


def _colours_of(mask_HW: NDArray[np.int64]) -> NDArray[np.uint8]:
    rgb_HW3: NDArray[np.uint8] = colours.PALETTE[np.where(mask_HW < 0, 0, mask_HW % 255 + 1)]
    return rgb_HW3


def _png(pixels_HW3: NDArray[np.uint8], *, is_mask: bool) -> str:
    image = Image.fromarray(pixels_HW3)
    # Scaling a mask may not mix its colours.
    scaling = Image.Resampling.NEAREST if is_mask else Image.Resampling.BILINEAR
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), scaling)
    stream = BytesIO()
    image.save(stream, "PNG")
    return b64encode(stream.getvalue()).decode()
