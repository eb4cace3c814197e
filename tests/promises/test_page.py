"""The page at `/` in Chromium draws the mask that the API answers."""

import base64
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, Response, sync_playwright

from tests.processes.server import LIMIT_S, ROOT, Server
from tests.tools import find_tool

SCENE = ROOT / "examples" / "scene.png"
CLASSES = ("burger", "sunflower", "book")
FLAGS = ("--no-sandbox", "--disable-background-networking", "--disable-sync", "--no-first-run")
# Keeps the canvas that the page draws into, which the element on the page does not give.
KEEP_DRAWN = """(() => {
  const transfer = HTMLCanvasElement.prototype.transferControlToOffscreen;
  HTMLCanvasElement.prototype.transferControlToOffscreen = function () {
    return (this.drawn = transfer.call(this));
  };
})()"""
LAYER = """(stage) => {
  const {drawn} = document.querySelector(`${stage} canvas`);
  const {width, height} = drawn;
  const {data} = drawn.getContext("2d").getImageData(0, 0, width, height);
  return {width, height, data: new Uint8Array(data.buffer).toBase64()};
}"""


SWATCHES = """() => [...document.querySelectorAll("#legend .swatch")]
  .map((one) => getComputedStyle(one).backgroundColor.match(/\\d+/g).map(Number))"""
HAS_MASK = (
    "() => document.querySelectorAll('#legend .share:not(:empty)').length === {} "
    "&& document.body.ariaBusy === 'false'"
)
# A tint over the image; lines and their soft edges are more opaque.
TINT = 0.4


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_tool("chromium"), args=list(FLAGS)
        )
        opened = browser.new_page()
        opened.set_default_timeout(1000 * LIMIT_S)
        opened.add_init_script(KEEP_DRAWN)
        yield opened
        browser.close()


def pixels_of_layer(page: Page, stage: str = "#stage") -> NDArray[np.uint8]:
    layer = page.evaluate(LAYER, stage)
    pixels = np.frombuffer(base64.b64decode(layer["data"]), np.uint8)
    return pixels.reshape(layer["height"], layer["width"], 4)


def check_mask(page: Page, labels: NDArray[np.integer]) -> None:
    """The layer shows these labels of pixels, by the colours of the list, apart from its lines."""
    layer = pixels_of_layer(page)
    size = layer.shape[1], layer.shape[0]
    scaled = Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    expected = np.asarray(scaled)
    colours = np.array([(0, 0, 0), *page.evaluate(SWATCHES)])
    is_tint = np.abs(layer[..., 3] - 255 * TINT) < 2
    distance = np.abs(layer[..., None, :3] - colours.astype(np.int16)).sum(-1)
    shown = np.where(is_tint, distance.argmin(-1), 0)
    is_plain = is_tint | ~layer[..., :3].any(-1)
    assert is_plain.mean() > 0.9
    assert (shown == expected)[is_plain].mean() > 0.99
    assert (shown > 0).any()


def fine_mask(page: Page, act: Callable[[], object], num_classes: int) -> Response:
    """Do what makes the page ask for a mask; check that it draws the fine one, and return it."""

    def is_fine(answer: Response) -> bool:
        body = answer.request.post_data_buffer or b""
        return "images:segment" in answer.url and (
            "quality=fine" in answer.url or b'"quality":"fine"' in body
        )

    with page.expect_response(is_fine) as waiting:
        act()
    page.wait_for_function(HAS_MASK.format(num_classes))
    page.hover("h1")
    check_mask(page, labels_of(waiting.value))
    return waiting.value


def labels_of(answer: Response) -> NDArray[np.uint8]:
    """Labels of pixels, of run lengths down the columns."""
    found = answer.json()["data"][0]
    labels = np.zeros(found["height"] * found["width"], np.uint8)
    for one in found["classes"]:
        ends = np.cumsum(one["segmentation"]["counts"])
        for start, end in zip(ends[::2], ends[1::2], strict=False):
            labels[start:end] = one["label"]
    return labels.reshape(found["width"], found["height"]).T


def test_the_page_draws_the_mask_of_the_api(student: Server, page: Page) -> None:
    elsewhere: list[str] = []
    own = (student.rest, "blob:", "data:")
    page.on("request", lambda one: None if one.url.startswith(own) else elsewhere.append(one.url))
    page.goto(student.rest)
    page.set_input_files("#file", SCENE)
    page.fill("#classes-input", ",".join(CLASSES))
    fine_mask(page, lambda: page.press("#classes-input", "Enter"), len(CLASSES))
    assert not elsewhere
