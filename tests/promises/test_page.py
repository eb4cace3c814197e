"""The page at `/` in Chromium paints the mask that the API answers."""

import base64
import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
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
LAYER = """() => {
  const {drawn} = document.querySelector("#stage canvas");
  const {width, height} = drawn;
  const {data} = drawn.getContext("2d").getImageData(0, 0, width, height);
  return {width, height, data: new Uint8Array(data.buffer).toBase64()};
}"""


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


def test_the_page_paints_the_mask_of_the_api(student: Server, page: Page) -> None:
    elsewhere: list[str] = []
    own = (student.rest, "blob:", "data:")
    page.on("request", lambda one: None if one.url.startswith(own) else elsewhere.append(one.url))
    page.goto(student.rest)
    page.set_input_files("#file", SCENE)
    for name in CLASSES:
        page.fill("#classes-input", name)
        page.press("#classes-input", "Enter")
    page.wait_for_function("() => document.querySelectorAll('#legend button').length === 3")
    page.wait_for_function("() => document.body.ariaBusy === 'false'")
    layer = page.evaluate(LAYER)
    pixels = np.frombuffer(base64.b64decode(layer["data"]), np.uint8)
    painted = pixels.reshape(layer["height"], layer["width"], 4)[..., :3]
    answer = httpx.post(
        f"{student.rest}/v1/images:segment",
        params={"classes": ",".join(CLASSES)},
        files={"image": SCENE.read_bytes()},
        headers={"Accept": "image/png"},
        timeout=LIMIT_S,
    )
    mask = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))
    np.testing.assert_array_equal(painted, mask)
    assert not elsewhere
