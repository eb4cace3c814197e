"""The page at `/` in Chromium: what a person sees is what the API answers."""

import base64
import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright
from pycocotools.coco import COCO

from model.package import ModelPackage
from tests.processes.server import LIMIT_S, ROOT, Server, start_server
from tests.promises.test_page import (
    CLASSES,
    FLAGS,
    HAS_MASK,
    KEEP_DRAWN,
    SCENE,
    check_mask,
    fine_mask,
    labels_of,
    pixels_of_layer,
)
from tests.tools import find_tool, run

AXE = ROOT / ".tools/axe/node_modules/axe-core/axe.min.js"
IS_IDLE = "document.body.ariaBusy === 'false'"
SCENE_SHAPE = (448, 448, 3)
# The page's colours of a scale from 0 to 1, at even steps.
VIRIDIS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])
SET = """([selector, value]) => {
  const slider = document.querySelector(selector);
  slider.value = value;
  slider.dispatchEvent(new Event("input", {bubbles: true}));
}"""
ELSEWHERE = "https://images.example.org"
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def service() -> Iterator[Server]:
    with start_server("--model=bundled-student", "--url-hosts=images.example.org") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=find_tool("chromium"), args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Browser, service: Server) -> Iterator[Open]:
    """Open the page; at the end, no request has left for elsewhere and no error was logged."""
    complaints: list[str] = []
    elsewhere: list[str] = []
    contexts: list[BrowserContext] = []

    def make(path: str = "/", at: Server = service, **options: Any) -> Page:
        context = browser.new_context(accept_downloads=True, **options)
        contexts.append(context)
        context.set_default_timeout(1000 * LIMIT_S)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=at.rest)
        context.add_init_script(KEEP_DRAWN)
        page, own = context.new_page(), (at.rest, "blob:", "data:", ELSEWHERE)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: elsewhere.extend([r.url] * (not r.url.startswith(own))))
        page.on("console", lambda said: complaints.extend([said.text] * (said.type == "error")))
        page.goto(at.rest + path)
        return page

    yield make
    for context in contexts:
        context.close()
    # The page says why an image is refused.
    expected = ("status of 422", "https://other.example.org")
    assert [one for one in complaints if not any(part in one for part in expected)] == []
    assert elsewhere == []


def wait(page: Page, condition: str) -> None:
    """Wait for an expression; as a function, which the page's policy lets Playwright evaluate."""
    page.wait_for_function(f"() => {condition}")


def enter(page: Page, selector: str, text: str) -> None:
    page.fill(selector, text)
    page.press(selector, "Enter")


def upload_scene(page: Page) -> None:
    page.set_input_files("#file", SCENE)
    enter(page, "#classes-input", ",".join(CLASSES))
    page.wait_for_function(HAS_MASK.format(3))


def layer_of(page: Page, stage: str = "#stage") -> NDArray[np.uint8]:
    """Colours of a layer of pixels, at full opacity."""
    page.evaluate(SET, ["#opacity", 1])
    return pixels_of_layer(page, stage)[..., :3]


def copied(page: Page, button: str) -> str:
    """The text that a button copies."""
    page.click(button)
    wait(page, "document.querySelector('#toast').textContent === 'Copied.'")
    text: str = page.evaluate("navigator.clipboard.readText()")
    page.evaluate("document.querySelector('#toast').textContent = ''")
    return text.replace("scene.png", str(SCENE)) if button != "#copy-link" else text


def run_curl(page: Page, folder: Path, name: str) -> bytes:
    """What the copied line of curl stores under a name."""
    done = run("bash", "-c", f"{copied(page, '#copy-curl')} -sS --fail", cwd=folder)
    assert done.returncode == 0, done.stderr
    return (folder / name).read_bytes()


def run_python(page: Page) -> Any:
    """The answer of the copied lines of Python."""
    found: dict[str, Any] = {}
    exec(compile(copied(page, "#copy-python"), "copied", "exec"), found)
    return found["answer"]


def move_to(page: Page, x: float, y: float) -> None:
    """Move the pointer to a place of the image, as shares of its sides."""
    box: Any = page.locator("#stage canvas").bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])


def check_scale(page: Page, values_HW: NDArray[np.floating], stage: str = "#stage") -> None:
    """The layer has the colours of values, from the lowest to the highest."""
    shares_HW = (values_HW - values_HW.min()) / np.ptp(values_HW)
    places = np.linspace(0, 1, len(VIRIDIS))
    expected = np.stack([np.interp(shares_HW, places, channel) for channel in VIRIDIS.T], -1)
    # Sums of another order round elsewhere.
    np.testing.assert_allclose(layer_of(page, stage), expected, atol=0.51)


def pixels_of(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def map_of(service: Server, task: str) -> NDArray[np.float32]:
    """The API's map of the scene, at the size of the head's output."""
    url, headers = f"{service.rest}/v1/images:{task}?size=model", {"Accept": "application/x-npy"}
    answer = httpx.post(url, files={"image": SCENE.read_bytes()}, headers=headers, timeout=LIMIT_S)
    found: NDArray[np.float32] = np.squeeze(np.load(io.BytesIO(answer.content)))
    return found


def download(page: Page, button: str) -> bytes:
    with page.expect_download() as waiting:
        page.click(button)
    return Path(waiting.value.path()).read_bytes()


def test_the_background_follows_its_slider_and_one_class_is_shown_alone(
    open_page: Open, tmp_path: Path
) -> None:
    page = open_page()
    upload_scene(page)
    answer = fine_mask(page, lambda: page.evaluate(SET, ["#level", 0.5]), 3)
    assert "background_level=0.5" in answer.url
    labels = labels_of(answer)
    assert 0 < (labels == 0).mean() < 1
    largest = int(np.bincount(labels[labels > 0]).argmax())
    alone = np.where(labels == largest, labels, 0)
    row = page.locator("#legend li").nth(largest - 1)
    row.hover()
    check_mask(page, alone)
    row.locator("button").first.click()
    page.hover("h1")
    check_mask(page, alone)
    y, x = np.argwhere(labels == largest)[(labels == largest).sum() // 2]
    move_to(page, (x + 0.5) / labels.shape[1], (y + 0.5) / labels.shape[0])
    assert page.inner_text("#reading") == CLASSES[largest - 1]
    with page.expect_response("**/v1/images:segment*") as waiting:
        page.check("[value=heat]")
    wait(page, IS_IDLE)
    found = waiting.value.json()["data"][0]
    cosines = np.frombuffer(base64.b64decode(found["scores"]["data"]), "<f4")
    check_scale(page, cosines.reshape(found["height"], found["width"]))
    assert pixels_of(run_curl(page, tmp_path, "heatmap.png")).shape == SCENE_SHAPE


# pycocotools' own code is older than NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_files_lines_of_code_and_the_link_repeat_what_is_shown(
    open_page: Open, service: Server, tmp_path: Path
) -> None:
    page = open_page()
    upload_scene(page)
    png = download(page, "#save-png")
    assert run_curl(page, tmp_path, "mask.png") == png
    check_coco(download(page, "#save-coco"), tmp_path / "coco.json")
    assert pixels_of(download(page, "#save-image")).shape == SCENE_SHAPE
    assert [one.name for one in run_python(page).classes] == list(CLASSES)
    page.click("#examples button >> nth=1")
    enter(page, "#classes-input", "sky")
    page.check("[value=heat]")
    wait(page, IS_IDLE)
    again = open_page(copied(page, "#copy-link").removeprefix(service.rest))
    again.wait_for_selector("#examples button[aria-pressed=true]")
    wait(again, "document.querySelectorAll('#legend li').length === 2")
    names = [shown.locator("#legend .name").all_inner_texts() for shown in (page, again)]
    assert names[0] == names[1]
    assert again.is_checked("[value=heat]")


def check_coco(content: bytes, file: Path) -> None:
    """COCO's tools read the image, its classes, and a mask for each instance."""
    file.write_bytes(content)
    with contextlib.redirect_stdout(io.StringIO()):
        read = COCO(str(file))
    (image,) = read.loadImgs(read.getImgIds())
    assert (image["file_name"], image["height"], image["width"]) == (SCENE.name, *SCENE_SHAPE[:2])
    assert [one["name"] for one in read.loadCats(read.getCatIds())] == list(CLASSES)
    annotations = read.loadAnns(read.getAnnIds(imgIds=[1]))
    assert annotations
    assert all(read.annToMask(one).sum() == one["area"] > 0 for one in annotations)


def test_a_click_on_the_link_first_takes_the_word_that_is_typed(open_page: Open) -> None:
    page = open_page("/#image=squirrel&words=squirrel")
    page.wait_for_function(HAS_MASK.format(1))
    enter(page, "#classes-input", "tree")
    assert "words=squirrel,tree" in copied(page, "#copy-link")
    page.fill("#classes-input", "sky")
    assert "words=squirrel,tree,sky" in copied(page, "#copy-link")


def test_what_is_no_image_is_refused_and_a_broken_one_shows_no_earlier_mask(
    open_page: Open, tmp_path: Path
) -> None:
    page = open_page()
    page.wait_for_function(HAS_MASK.format(1))
    drop(page, "notes.txt", "text/plain")
    wait(
        page, "document.querySelector('#toast').textContent.startsWith('notes.txt is not an image')"
    )
    page.evaluate("document.querySelector('#toast').textContent = ''")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no JPEG")
    enter(page, "#classes-input", "squirrel")
    page.set_input_files("#file", broken)
    wait(page, "document.querySelector('#toast').classList.contains('error')")
    wait(page, IS_IDLE)
    assert page.locator("#legend .share").all_inner_texts() == 2 * [""]


def drop(page: Page, name: str, media_type: str) -> None:
    """Drop a file of a few bytes on the page."""
    page.evaluate(
        """([name, type]) => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File(["some"], name, { type }));
          document.dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
        }""",
        [name, media_type],
    )


def test_a_link_opens_an_image_of_an_allowed_host_only(open_page: Open, service: Server) -> None:
    page, asked = open_page(), []

    def answer(route: Route) -> None:
        asked.append(route.request.headers)
        allowed = {"Access-Control-Allow-Origin": "*"}
        route.fulfill(path=SCENE, content_type="image/png", headers=allowed)

    page.route("**://*.org/**", answer)
    link = f"image={quote(f'{ELSEWHERE}/a/scene.png?size=2', safe='')}&words={','.join(CLASSES)}"
    page.evaluate("link => { location.hash = link; }", link)
    page.wait_for_function(HAS_MASK.format(len(CLASSES)))
    assert copied(page, "#copy-link") == f"{service.rest}/#{link}"
    assert str(SCENE) in copied(page, "#copy-curl")
    assert len(asked) == 1
    assert not {"cookie", "referer", "x-api-key"} & asked[0].keys()
    refused = open_page("/#image=https://other.example.org/a.png&words=sky")
    wait(refused, "document.querySelector('#toast').textContent.includes('setting url_hosts')")


def test_views_are_the_apis_and_the_status_shows_the_stages_of_their_request(
    open_page: Open, tmp_path: Path
) -> None:
    page = open_page()
    page.set_input_files("#file", SCENE)
    page.click("#tab-features")
    wait(page, IS_IDLE)
    np.testing.assert_array_equal(layer_of(page), pixels_of(run_curl(page, tmp_path, "colors.png")))
    page.check("[value=groups]")
    enter(page, "#group-count", "4")
    wait(page, IS_IDLE)
    np.testing.assert_array_equal(layer_of(page), pixels_of(run_curl(page, tmp_path, "groups.png")))
    assert run_python(page).max() == 4
    page.click("#tab-status")
    wait(page, "document.querySelector('#statistics').textContent.includes('in the queue')")
    assert page.inner_text("#timing p") == "v1/images:features, 200"
    bars = {bar.split()[0] for bar in page.locator("#timing .bar").all_inner_texts()}
    assert {"post", "total"} <= bars
    assert "tipserve-student" in page.inner_text("#card")


def test_an_example_finds_its_like_in_this_image_and_in_another(
    open_page: Open, tmp_path: Path
) -> None:
    page = open_page()
    page.set_input_files("#file", SCENE)
    page.check("[value=examples]")
    move_to(page, 0.55, 0.2)
    page.mouse.down()
    move_to(page, 0.7, 0.4)
    answer = fine_mask(page, page.mouse.up, 1)
    assert (labels_of(answer) > 0).any()
    body: Any = answer.request.post_data_json
    box = body["classes"][0]["examples"][0]["box"]
    np.testing.assert_allclose(box, 448 * np.array([0.55, 0.2, 0.15, 0.2]), atol=3)
    # Then a point by keys.
    page.focus("#stage canvas")
    page.keyboard.press("ArrowLeft")
    fine_mask(page, lambda: page.keyboard.press("Enter"), 2)
    names = [one.name for one in run_python(page).classes]
    assert names == page.locator("#legend .name").all_inner_texts() == ["example 1", "example 2"]
    assert run_curl(page, tmp_path, "mask.png") == download(page, "#save-png")
    other = tmp_path / "mirrored.png"
    ImageOps.mirror(Image.open(SCENE)).save(other)
    answer = fine_mask(page, lambda: page.set_input_files("#file", other), 2)
    body = answer.request.post_data_json
    sent = [base64.b64decode(one.partition(",")[2]) for one in body["images"]]
    assert sent == [other.read_bytes(), SCENE.read_bytes()]
    page.click("#legend .remove >> nth=0")
    page.wait_for_function(HAS_MASK.format(1))


def test_depth_and_normals_are_drawn_beside_or_over_the_image_and_read(
    open_page: Open, dense_package: ModelPackage, tmp_path: Path
) -> None:
    with start_server(f"--model={dense_package.path}") as service:
        page = open_page(at=service)
        page.set_input_files("#file", SCENE)
        page.click("#tab-maps")
        wait(page, "!document.querySelector('#scale').hidden")
        depth_HW = map_of(service, "depth")
        check_scale(page, -depth_HW, "#second")  # near is bright
        ends = [page.inner_text(f"#scale-{end}") for end in ("low", "high")]
        assert ends == [f"{depth_HW.min():.2f} m", f"{depth_HW.max():.2f} m"]
        page.locator("#second canvas").hover(position={"x": 1, "y": 1})
        assert page.inner_text("#reading") == f"{depth_HW[0, 0]:.2f} m"
        assert pixels_of(run_curl(page, tmp_path, "depth.png")).shape == SCENE_SHAPE
        assert run_python(page).shape == SCENE_SHAPE[:2]
        page.check("[value=over]")
        with page.expect_response("**/v1/images:normals*"):
            page.check("[value=normals]")
        wait(page, IS_IDLE)
        assert page.locator("#scale").is_hidden()
        normals_HW3 = map_of(service, "normals")
        np.testing.assert_allclose(layer_of(page), 127.5 * (normals_HW3 + 1), atol=0.51)


def test_search_finds_the_image_itself_first(open_page: Open, tmp_path: Path) -> None:
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
    enter(page, "#query", "a drawing")
    wait(page, "document.querySelector('#results li').innerText.trim() !== 'cosine 1.000'")


def test_an_example_is_open_and_a_user_of_the_keyboard_reaches_everything(open_page: Open) -> None:
    page = open_page()
    page.wait_for_function(HAS_MASK.format(1))
    page.focus("#examples button >> nth=3")
    page.keyboard.press("Enter")
    page.wait_for_function(HAS_MASK.format(3))
    page.focus("#stage canvas")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#reading")
    page.focus("#tab-masks")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-features"


@pytest.mark.parametrize(
    ("scheme", "width", "height"), [("dark", 800, 600), ("light", 390, 844), ("light", 1280, 844)]
)
def test_axe_finds_nothing_and_everything_fits(
    open_page: Open, scheme: str, width: int, height: int
) -> None:
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": height})
    upload_scene(page)
    for selector in ("#stage", "#legend") if width >= 800 else ():
        box = page.locator(selector).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= height
    page.evaluate("document.querySelector('#tab-maps').hidden = false")  # of models with depth
    page.evaluate(AXE.read_text())
    for shown in ("#tab-masks", "[value=examples]", "#tab-features", "#tab-search", "#tab-status"):
        page.click(shown)
        wait(page, IS_IDLE)
        report = page.evaluate("axe.run({resultTypes: ['violations']})")
        assert [(one["id"], one["nodes"]) for one in report["violations"]] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_an_image_is_uploaded_by_the_form_of_the_document(open_page: Open) -> None:
    page = open_page("/docs")
    page.click("#operations-images-embed_images button.opblock-summary-control")
    page.click("button.try-out__btn")
    form = page.locator(".opblock-section-request-body")
    form.locator("input[type=file]").first.set_input_files(SCENE)
    outputs = form.locator("tr", has_text="outputs").locator("select")
    outputs.select_option(["cls1", "cls2"])
    page.click("button.execute")
    page.wait_for_selector(".live-responses-table .microlight")
    answer = json.loads(page.inner_text(".live-responses-table .microlight"))
    assert answer["data"][0].keys() == {"index", "cls1", "cls2"}
