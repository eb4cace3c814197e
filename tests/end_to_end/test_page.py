"""The page at `/` in Chromium: what it paints is what the API answers."""

import base64
import dataclasses
import gzip
import io
import json
import re
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from playwright.sync_api import Browser, Page, sync_playwright

from model.graphs import DENSE_TASKS
from model.package import ModelPackage
from service.messages import IMAGE_OUTPUTS
from tests.end_to_end.conftest import LIMIT_S
from tests.processes.service_process import RunningService, running_service

CHROMIUM = "/usr/bin/chromium"
# It requests nothing from the network, and runs as root in a container.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
SCENE = Path("examples/scene.png").resolve()
AXE = Path(".tools/axe/node_modules/axe-core/axe.min.js")
IS_IDLE = "document.body.ariaBusy === 'false'"
CLASSES = ("burger", "sunflower", "book")
THRESHOLD = 0.3
SHOTS = 30
OPACITY = 0.7
# Its pixels are rounded when they are painted, when they fade, and when they are shown.
OPACITY_ERROR = 2.0
# The page's colours of a scale from 0 to 1, at even steps.
VIRIDIS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])
# Keeps the canvas that a page draws into, which the element on the page does not give.
KEEP_DRAWN = """(() => {
  const transfer = HTMLCanvasElement.prototype.transferControlToOffscreen;
  HTMLCanvasElement.prototype.transferControlToOffscreen = function () {
    return (this.drawn = transfer.call(this));
  };
})()"""
# The layer's pixels at full opacity.
LAYER = """() => {
  for (const slider of document.querySelectorAll("#opacity, #feature-opacity")) {
    slider.value = 1;
    slider.dispatchEvent(new Event("input"));
  }
  const {drawn} = document.querySelector("#stage canvas");
  const {width, height} = drawn;
  const {data} = drawn.getContext("2d").getImageData(0, 0, width, height);
  return {width, height, data: new Uint8Array(data.buffer).toBase64()};
}"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    log = tmp_path_factory.mktemp("page") / "server.log"
    with running_service("--model=bundled-student", log_path=log) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Browser, service: RunningService) -> Iterator[Callable[..., Page]]:
    """Open the page; at the end, no request has left for elsewhere and no error was logged."""
    complaints: list[str] = []
    contexts = []

    def make(path: str = "/", at: RunningService = service, **options: Any) -> Page:
        base = at.http_url
        context = browser.new_context(accept_downloads=True, **options)
        context.set_default_timeout(1000 * LIMIT_S)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=base)
        context.add_init_script(KEEP_DRAWN)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))

        def on_console(line: Any) -> None:
            # The page shows a refused image. Warnings are about this test's reading of layers.
            if line.type == "error" and "status of 422" not in line.text:
                complaints.append(line.text)

        def on_request(request: Any) -> None:
            if not request.url.startswith((base, "blob:", "data:")):
                complaints.append(f"a request to {request.url}")

        def on_failure(request: Any) -> None:
            # The page aborts a request when a newer one replaces it.
            if request.failure != "net::ERR_ABORTED":
                complaints.append(f"{request.url}: {request.failure}")

        page.on("console", on_console)
        page.on("request", on_request)
        page.on("requestfailed", on_failure)
        page.goto(base + path)
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []


def wait(page: Page, condition: str) -> None:
    """Wait for an expression; as a function, which the page's policy lets Playwright evaluate."""
    page.wait_for_function(f"() => {condition}")


def upload_scene(page: Page) -> None:
    page.set_input_files("#file", SCENE)
    for name in CLASSES:
        page.fill("#classes-input", name)
        page.press("#classes-input", "Enter")
    wait(page, "document.querySelectorAll('#legend button').length === 3")
    wait(page, IS_IDLE)


def layer_of(page: Page) -> NDArray[np.uint8]:
    read = page.evaluate(LAYER)
    pixels = np.frombuffer(base64.b64decode(read["data"]), np.uint8)
    return pixels.reshape(read["height"], read["width"], 4)


def check_screen(page: Page, expected: NDArray[Any], atol: float = 0.0) -> None:
    """The screen shows these pixels at the place of the image and its layer, as RGB."""
    box = page.locator("#stage canvas").bounding_box()
    assert box is not None
    # Chromium places images at whole pixels.
    left, top = round(box["x"]), round(box["y"])
    height, width = expected.shape[:2]
    # A layer reaches the screen in a frame of its own, some time after it was drawn.
    for _ in range(SHOTS):
        shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        shown = shot[top : top + height, left : left + width]
        if np.allclose(shown, expected, rtol=0, atol=atol):
            break
    np.testing.assert_allclose(shown, expected, rtol=0, atol=atol)


def mask_of(service: RunningService, **options: Any) -> NDArray[np.uint8]:
    """The API's coloured mask, as RGB."""
    answer = httpx.post(
        f"{service.http_url}/v1/images:segment",
        params={"classes": ",".join(CLASSES), **options},
        files={"image": SCENE.read_bytes()},
        headers={"Accept": "image/png"},
        timeout=LIMIT_S,
    )
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))


def view_of(service: RunningService, **options: Any) -> httpx.Response:
    """The API's view of the scene's features, as PNG."""
    answer = httpx.post(
        f"{service.http_url}/v1/images:features",
        params={"size": "model", **options},
        files={"image": SCENE.read_bytes()},
        headers={"Accept": "image/png"},
        timeout=LIMIT_S,
    )
    assert answer.status_code == 200, answer.text
    return answer


def check_view(page: Page, answer: httpx.Response) -> NDArray[np.uint8]:
    """The layer has the pixels of a view of the API."""
    expected = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))
    np.testing.assert_array_equal(layer_of(page)[..., :3], expected)
    return expected


def check_scale(page: Page, values_HW: NDArray[np.floating]) -> None:
    """The layer has the colours of values, from the lowest to the highest."""
    shares_HW = (values_HW - values_HW.min()) / np.ptp(values_HW)
    places = np.linspace(0, 1, len(VIRIDIS))
    expected = np.stack([np.interp(shares_HW, places, channel) for channel in VIRIDIS.T], -1)
    painted = layer_of(page)
    # Sums of another order round elsewhere.
    np.testing.assert_allclose(painted[..., :3], expected, atol=0.51)
    assert (painted[..., 3] == 255).all()


def download(page: Page, button: str) -> bytes:
    with page.expect_download() as waiting:
        page.click(button)
    return Path(waiting.value.path()).read_bytes()


def test_the_painted_mask_is_the_apis_pixel_by_pixel(
    open_page: Callable[..., Page], service: RunningService
) -> None:
    page = open_page()
    upload_scene(page)
    np.testing.assert_array_equal(layer_of(page)[..., :3], mask_of(service))
    page.click("summary")
    with page.expect_response(lambda answer: "background_threshold" in answer.url) as waiting:
        page.fill("#threshold", str(THRESHOLD))
        page.press("#threshold", "Enter")
    wait(page, "document.querySelector('#legend').innerText.includes('background')")
    answered = waiting.value.json()["data"][0]
    expected = mask_of(service, background_threshold=THRESHOLD)
    painted = layer_of(page)
    has_class = painted[..., 3] == 255
    np.testing.assert_array_equal(painted[has_class][:, :3], expected[has_class])
    assert 0 < has_class.mean() < 1
    assert not expected[~has_class].any()
    # One class alone, then its score under the pointer.
    colours, areas = np.unique(painted[has_class][:, :3], axis=0, return_counts=True)
    colour = "#" + bytes(colours[areas.argmax()]).hex()
    largest = next(found for found in answered["classes"] if found["color"] == colour)["name"]
    page.click(f"#legend button:has-text('{largest}')")
    alone = layer_of(page)[..., 3] == 255
    assert alone.sum() == areas.max()
    rows, columns = np.nonzero(alone)
    middle = len(rows) // 2
    y, x = rows[middle], columns[middle]
    box = page.locator("#stage canvas").bounding_box()
    assert box is not None
    # The mask has come without its scores, which are most of an answer.
    with page.expect_response(lambda answer: "include_scores" in answer.url) as waiting:
        page.mouse.move(
            box["x"] + (x + 0.5) / alone.shape[1] * box["width"],
            box["y"] + (y + 0.5) / alone.shape[0] * box["height"],
        )
    entry = waiting.value.json()["data"][0]
    score = np.frombuffer(base64.b64decode(entry["scores"]["data"]), "<f4").reshape(alone.shape)[
        y, x
    ]
    wait(page, "document.querySelector('#reading').textContent.includes('cosine')")
    assert page.inner_text("#reading") == f"{largest}, cosine {score:.3f}"


def test_the_screen_shows_the_layer_as_it_was_drawn_and_removed(
    open_page: Callable[..., Page], service: RunningService
) -> None:
    page = open_page()
    page.set_input_files("#file", SCENE)
    with Image.open(SCENE) as scene:
        image = np.asarray(scene.convert("RGB"))
    check_screen(page, image)
    upload_scene(page)
    mask = mask_of(service)
    check_screen(page, image + OPACITY * (mask.astype(float) - image), atol=OPACITY_ERROR)
    page.fill("#opacity", "1")
    check_screen(page, mask)
    page.hover("#stage canvas")
    assert page.inner_text("#reading")
    for name in CLASSES:
        page.click(f"[aria-label='Remove {name}']")
    assert page.inner_text("#legend") == page.inner_text("#reading") == ""
    check_screen(page, image)
    # The layer of patches is stretched over the image.
    page.click("#tab-features")
    page.check("[value=colors]")
    wait(page, IS_IDLE)
    patches = layer_of(page)[..., :3]
    stretch = image.shape[0] // patches.shape[0]
    expected = patches.repeat(stretch, axis=0).repeat(stretch, axis=1)
    check_screen(page, expected)


def test_an_image_is_sent_without_reading_its_file_again(
    open_page: Callable[..., Page], tmp_path: Path
) -> None:
    file = tmp_path / "scene.png"
    file.write_bytes(SCENE.read_bytes())
    page = open_page()
    page.set_input_files("#file", file)
    wait(page, "document.querySelector('#stage img').naturalWidth")
    # Comes after the page's own reading, which began before the image was shown.
    page.evaluate(
        """() => {
          const form = new FormData();
          form.append("image", document.querySelector("#file").files[0]);
          return new Response(form).arrayBuffer().then(() => null);
        }"""
    )
    file.unlink()
    page.fill("#classes-input", "burger")
    page.press("#classes-input", "Enter")
    page.wait_for_selector("#legend button")


class Compressing(BaseHTTPRequestHandler):
    """Passes requests on, and compresses the answers."""

    upstream = ""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kept = {
            name: self.headers[name] for name in ("Accept", "Content-Type") if self.headers[name]
        }
        answer = httpx.request(
            self.command, self.upstream + self.path, content=body, headers=kept, timeout=LIMIT_S
        )
        content = gzip.compress(answer.content)
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_compressing_proxy_changes_nothing(
    open_page: Callable[..., Page], service: RunningService
) -> None:
    class Proxy(Compressing):
        upstream = service.http_url

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        try:
            page = open_page(at=dataclasses.replace(service, http_port=proxy.server_port))
            upload_scene(page)
            np.testing.assert_array_equal(layer_of(page)[..., :3], mask_of(service))
            page.hover("#stage canvas")  # loads the scores, an answer of many parts
            wait(page, "document.querySelector('#reading').textContent.includes('cosine')")
        finally:
            proxy.shutdown()


def test_a_mask_without_classes_is_not_waited_for(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.set_input_files("#file", SCENE)
    page.route("**/v1/images:segment?*", lambda route: None)  # the server does not answer
    with page.expect_request("**/v1/images:segment?*"):
        page.fill("#classes-input", "burger")
        page.press("#classes-input", "Enter")
    with page.expect_event("requestfailed"):
        page.click("[aria-label='Remove burger']")
    wait(page, IS_IDLE)
    page.unroute_all(behavior="ignoreErrors")


def test_exports_are_the_apis_answers_and_the_copied_line_repeats_them(
    open_page: Callable[..., Page], service: RunningService, tmp_path: Path
) -> None:
    page = open_page()
    upload_scene(page)
    png = np.asarray(Image.open(io.BytesIO(download(page, "#save-png"))).convert("RGB"))
    np.testing.assert_array_equal(png, mask_of(service))
    entry = json.loads(download(page, "#save-coco"))["data"][0]
    coco, instances = entry["classes"], entry["instances"]
    shown = page.locator("#legend li").all_inner_texts()
    for one, text in zip(coco, shown, strict=False):
        number = sum(found["label"] == one["label"] for found in instances)
        if number:
            assert f"score {one['score']:.2f}, {number} region" in text
    assert all("counts" in found["segmentation"] for found in instances)
    assert [entry["name"] for entry in coco] == list(CLASSES)
    assert all("counts" in entry["segmentation"] for entry in coco)
    page.click("#copy-curl")
    wait(page, "document.querySelector('#toast').textContent === 'Copied.'")
    line = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    line = [str(part).replace("image=@scene.png", f"image=@{SCENE}") for part in line]
    subprocess.run(["curl", "-sS", "--fail", *line[1:]], cwd=tmp_path, check=True, timeout=LIMIT_S)
    copied = np.asarray(Image.open(tmp_path / "mask.png").convert("RGB"))
    np.testing.assert_array_equal(copied, png)
    page.click("#copy-python")
    code = page.evaluate("navigator.clipboard.readText()").replace("scene.png", str(SCENE))
    found: dict[str, Any] = {}
    exec(compile(code, "copied", "exec"), found)
    assert [one.name for one in found["answer"].classes] == list(CLASSES)


def test_a_click_compares_every_patch_with_the_one_under_it(
    open_page: Callable[..., Page], service: RunningService
) -> None:
    page = open_page()
    page.set_input_files("#file", SCENE)
    page.click("#tab-features")
    wait(page, IS_IDLE)
    page.locator("#stage canvas").click(position={"x": 20, "y": 20})
    page.wait_for_selector("#stage i:not([hidden])")
    answer = httpx.post(
        f"{service.http_url}/v1/images:embed",
        params={"outputs": "patches", "fit": "aspect"},
        files={"image": SCENE.read_bytes()},
        timeout=LIMIT_S,
    )
    patches = np.array(answer.json()["data"][0]["patches"])
    page.locator("#stage canvas").hover(position={"x": 21, "y": 21})
    assert page.inner_text("#reading") == "cosine 1.000"
    check_scale(page, patches @ patches[0, 0])
    sentence = "a yellow flower"
    text = httpx.post(
        f"{service.http_url}/v1/texts:embed", json={"texts": [sentence]}, timeout=LIMIT_S
    )
    page.check("[value=sentence]")
    page.fill("#sentence", sentence)
    page.press("#sentence", "Enter")
    wait(page, IS_IDLE)
    check_scale(page, patches @ np.array(text.json()["data"][0]["embedding"]))
    page.check("[value=colors]")
    wait(page, IS_IDLE)
    check_view(page, view_of(service, kind="colors"))


def test_groups_are_the_apis_and_the_status_shows_the_stages_of_their_request(
    open_page: Callable[..., Page], service: RunningService
) -> None:
    page = open_page()
    page.set_input_files("#file", SCENE)
    page.click("#tab-features")
    page.check("[value=groups]")
    page.fill("#group-count", "4")
    page.press("#group-count", "Enter")
    wait(page, IS_IDLE)
    answer = view_of(service, kind="groups", group_count=4)
    expected = check_view(page, answer)
    assert len(np.unique(expected.reshape(-1, 3), axis=0)) == 4
    page.click("#tab-status")
    wait(page, "document.querySelector('#statistics').textContent.includes('in the queue')")
    assert page.inner_text("#timing p") == "v1/images:features, 200"
    stages = set(re.findall(r"(\w+);dur=", answer.headers["Server-Timing"]))
    assert stages <= {bar.split()[0] for bar in page.locator("#timing .bar").all_inner_texts()}
    assert "tipserve-student" in page.inner_text("#card")


def test_an_example_finds_its_like_in_this_image_and_in_another(
    open_page: Callable[..., Page], service: RunningService, tmp_path: Path
) -> None:
    page = open_page()
    page.set_input_files("#file", SCENE)
    page.check("[value=examples]")
    canvas = page.locator("#stage canvas")
    box = canvas.bounding_box()
    assert box is not None
    # Drag a box, then select a point by keys.
    corners = [(0.55, 0.2), (0.7, 0.4)]
    (x, y), (right, bottom) = [
        (box["x"] + a * box["width"], box["y"] + b * box["height"]) for a, b in corners
    ]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(right, bottom)
    assert page.locator("#stage b").is_visible()
    with page.expect_request("**/v1/images:segment") as waiting:
        page.mouse.up()
    body: Any = waiting.value.post_data_json
    ((first,),) = [one["examples"] for one in body["classes"]]
    with Image.open(SCENE) as scene:
        width, height = scene.size
    left, top = corners[0]
    np.testing.assert_allclose(first["box"][:2], [left * width, top * height], atol=3)
    np.testing.assert_allclose(first["box"][2:], [0.15 * width, 0.2 * height], atol=3)
    wait(page, IS_IDLE)
    canvas.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Shift+ArrowUp")
    assert page.locator("#stage b").is_visible()
    page.keyboard.press("ArrowLeft")
    assert not page.locator("#stage b").is_visible()
    check_examples(page, service, lambda: page.keyboard.press("Enter"), [SCENE])
    assert page.locator("#legend button").all_inner_texts() == ["example 1", "example 2"]
    with Image.open(SCENE) as scene:
        other = tmp_path / "mirrored.png"
        ImageOps.mirror(scene).save(other)
    check_examples(page, service, lambda: page.set_input_files("#file", other), [other, SCENE])
    assert page.is_disabled("#save-png")
    page.click("#shown button >> nth=0")
    wait(page, "document.querySelectorAll('#legend button').length === 1")


def check_examples(
    page: Page, service: RunningService, act: Callable[[], None], images: list[Path]
) -> None:
    """After an action the page shows the API's mask of its request, which has these images."""
    with page.expect_request("**/v1/images:segment") as waiting:
        act()
    body: Any = waiting.value.post_data_json
    sent = [base64.b64decode(one.partition(",")[2]) for one in body["images"]]
    assert sent == [image.read_bytes() for image in images]
    wait(page, "document.querySelectorAll('#legend button').length === 2")
    wait(page, IS_IDLE)
    labels_body = body | {"format": "mask", "encoding": "base64"}
    answer = httpx.post(f"{service.http_url}/v1/images:segment", json=labels_body, timeout=LIMIT_S)
    found = answer.json()["data"][0]
    labels = np.frombuffer(base64.b64decode(found["labels"]["data"]), "<u2")
    colours = [(0, 0, 0, 0)] + [(*bytes.fromhex(one["color"][1:]), 255) for one in found["classes"]]
    expected = np.array(colours, np.uint8)[labels].reshape(found["height"], found["width"], 4)
    np.testing.assert_array_equal(layer_of(page), expected)
    assert (labels > 0).any()


def test_depth_and_normals_are_drawn_with_their_scale_and_read(
    open_page: Callable[..., Page], dense_package: ModelPackage
) -> None:
    with running_service(f"--model={dense_package.path}") as service:
        page = open_page(at=service)
        page.set_input_files("#file", SCENE)
        page.click("#tab-maps")
        wait(page, "!document.querySelector('#scale').hidden")
        depth_HW = map_of(service, "depth")
        check_scale(page, -depth_HW)  # near is bright
        ends = [page.inner_text(f"#scale-{end}") for end in ("low", "high")]
        assert ends == [f"{depth_HW.min():.2f} m", f"{depth_HW.max():.2f} m"]
        canvas = page.locator("#stage canvas")
        canvas.hover(position={"x": 1, "y": 1})
        assert page.inner_text("#reading") == f"{depth_HW[0, 0]:.2f} m"
        with page.expect_response("**/v1/images:normals*"):
            page.check("[value=normals]")
        wait(page, IS_IDLE)
        assert page.locator("#scale").is_hidden()
        normals_HW3 = map_of(service, "normals")
        drawn = layer_of(page)[..., :3]
        np.testing.assert_allclose(drawn, 127.5 * (normals_HW3 + 1), atol=0.51)
        canvas.hover(position={"x": 1, "y": 2})
        text = ", ".join(f"{one:.2f}" for one in normals_HW3[0, 0])
        assert page.inner_text("#reading") == f"normal {text}"


def map_of(service: RunningService, task: str) -> NDArray[np.float32]:
    """The API's map of the scene, at the size of the head's output."""
    answer = httpx.post(
        f"{service.http_url}/v1/images:{task}",
        params={"size": "model"},
        files={"image": SCENE.read_bytes()},
        headers={"Accept": "application/x-npy"},
        timeout=LIMIT_S,
    )
    assert answer.status_code == 200, answer.text
    found: NDArray[np.float32] = np.squeeze(np.load(io.BytesIO(answer.content)))
    return found


def test_search_finds_the_image_itself_first(
    open_page: Callable[..., Page], tmp_path: Path
) -> None:
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 256, (3, 3, 3), np.uint8)
        Image.fromarray(noise).resize((60, 60)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    page = open_page()
    page.click("#tab-search")
    page.set_input_files("#images", sorted(tmp_path.glob("*.png")))
    wait(page, "document.querySelector('#found').textContent.startsWith('5 images; 1 failed')")
    page.click("#results button:has(img[alt='3.png'])")
    first = page.locator("#results li").first
    assert first.inner_text().strip() == "cosine 1.000"
    assert first.locator("img").get_attribute("alt") == "3.png"
    page.fill("#query", "a drawing")
    wait(page, "document.querySelector('#results li').innerText.trim() !== 'cosine 1.000'")


def test_a_user_of_the_keyboard_reaches_everything(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.focus("#examples button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#legend button")
    page.focus("#stage canvas")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#reading")
    page.focus("#tab-masks")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-features"
    wait(page, IS_IDLE)
    page.focus("#stage canvas")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stage i:not([hidden])")


def test_image_and_legend_fit_a_small_window(open_page: Callable[..., Page]) -> None:
    page = open_page(viewport={"width": 800, "height": 600})
    upload_scene(page)
    for selector in ("#stage", "#legend"):
        box = page.locator(selector).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 600


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (800, 600), (1280, 844)])
def test_no_serious_finding_of_axe_and_no_sideways_scrolling(
    open_page: Callable[..., Page], scheme: str, width: int, height: int
) -> None:
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": height})
    upload_scene(page)
    page.evaluate("document.querySelector('#tab-maps').hidden = false")  # of models with depth
    for selector in ("masks", "[value=examples]", "features", "search", "status"):
        page.click(selector if selector.startswith("[") else f"#tab-{selector}")
        wait(page, IS_IDLE)
        page.evaluate(AXE.read_text())
        report = page.evaluate("axe.run({resultTypes: ['violations']})")
        serious = [
            (found["id"], [node["html"] for node in found["nodes"]])
            for found in report["violations"]
            if found["impact"] in {"serious", "critical"}
        ]
        assert serious == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert (
            page.eval_on_selector("[role=tablist]", "one => one.scrollWidth - one.clientWidth") <= 0
        )


def test_the_document_of_the_api_can_be_tried_out(open_page: Callable[..., Page]) -> None:
    page = open_page("/docs")
    page.click("#operations-models-list_models button.opblock-summary-control")
    page.click("button.try-out__btn")
    page.click("button.execute")
    page.wait_for_selector(".live-responses-table .microlight")
    assert '"runtime"' in page.inner_text(".live-responses-table .microlight")


def test_an_image_is_uploaded_by_the_form_of_the_document(open_page: Callable[..., Page]) -> None:
    page = open_page("/docs")
    page.click("#operations-images-embed_images button.opblock-summary-control")
    page.click("button.try-out__btn")
    form = page.locator(".opblock-section-request-body")
    form.locator("input[type=file]").first.set_input_files(SCENE)
    outputs = form.locator("tr", has_text="outputs").locator("select")
    assert outputs.locator("option").all_inner_texts()[-7:] == [*IMAGE_OUTPUTS, *DENSE_TASKS]
    outputs.select_option(["cls1", "cls2"])
    page.click("button.execute")
    page.wait_for_selector(".live-responses-table .microlight")
    answer = json.loads(page.inner_text(".live-responses-table .microlight"))
    assert answer["data"][0].keys() == {"index", "cls1", "cls2"}
