"""The page at `/` in Chromium draws the mask that the API answers."""

import base64
import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.promises.servers import LIMIT_S, ROOT, Server
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


def repeated(url: str, image: bytes) -> NDArray[np.uint8]:
    """Labels of the mask that a request of the page asks for."""
    address = httpx.URL(url).copy_set_param("format", "labels")
    answer = httpx.post(
        address, files={"image": image}, headers={"Accept": "image/png"}, timeout=LIMIT_S
    )
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_the_page_draws_the_mask_of_the_api(student: Server, page: Page) -> None:
    elsewhere: list[str] = []
    asked: list[str] = []
    own = (student.rest, "blob:", "data:")
    page.on("request", lambda one: None if one.url.startswith(own) else elsewhere.append(one.url))
    page.on("request", lambda one: asked.append(one.url))
    page.goto(student.rest)
    page.set_input_files("#file", SCENE)
    page.fill("#classes-input", ",".join(CLASSES))
    page.press("#classes-input", "Enter")
    page.wait_for_function(HAS_MASK.format(len(CLASSES)))
    url = [one for one in asked if "images:segment" in one][-1]
    assert httpx.URL(url).params["classes"] == ",".join(CLASSES)
    check_mask(page, repeated(url, SCENE.read_bytes()))
    assert not elsewhere
