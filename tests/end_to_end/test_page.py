"""The page at `/` in Chromium: what a person sees is what the API answers."""

import base64
import io
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from playwright.sync_api import Browser, Page, sync_playwright

from model.package import ModelPackage
from tests.end_to_end.conftest import LIMIT_S
from tests.processes.service_process import RunningService, running_service
from tests.promises.test_page import CLASSES, FLAGS, KEEP_DRAWN, LAYER, SCENE
from tests.tools import find_tool

AXE = Path(".tools/axe/node_modules/axe-core/axe.min.js")
IS_IDLE = "document.body.ariaBusy === 'false'"
LEGEND_HAS = "document.querySelectorAll('#legend button').length === {}"
THRESHOLD = 0.3
# The page's colours of a scale from 0 to 1, at even steps.
VIRIDIS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])
OPAQUE = """() => {
  for (const slider of document.querySelectorAll("#opacity, #feature-opacity")) {
    slider.value = 1;
    slider.dispatchEvent(new Event("input"));
  }
}"""
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service("--model=bundled-student") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=find_tool("chromium"), args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Browser, service: RunningService) -> Iterator[Open]:
    """Open the page; at the end, no request has left for elsewhere and no error was logged."""
    complaints: list[str] = []
    contexts = []

    def make(path: str = "/", at: RunningService = service, **options: Any) -> Page:
        context = browser.new_context(accept_downloads=True, **options)
        contexts.append(context)
        context.set_default_timeout(1000 * LIMIT_S)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=at.http_url)
        context.add_init_script(KEEP_DRAWN)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))

        def on_console(line: Any) -> None:
            # The page shows a refused image. Warnings are about this test's reading of layers.
            if line.type == "error" and "status of 422" not in line.text:
                complaints.append(line.text)

        def on_request(request: Any) -> None:
            if not request.url.startswith((at.http_url, "blob:", "data:")):
                complaints.append(f"a request to {request.url}")

        page.on("console", on_console)
        page.on("request", on_request)
        page.goto(at.http_url + path)
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []


def wait(page: Page, condition: str) -> None:
    """Wait for an expression; as a function, which the page's policy lets Playwright evaluate."""
    page.wait_for_function(f"() => {condition}")


def enter(page: Page, selector: str, text: str) -> None:
    page.fill(selector, text)
    page.press(selector, "Enter")


def upload_scene(page: Page) -> None:
    page.set_input_files("#file", SCENE)
    for name in CLASSES:
        enter(page, "#classes-input", name)
    wait(page, LEGEND_HAS.format(3))
    wait(page, IS_IDLE)


def layer_of(page: Page) -> NDArray[np.uint8]:
    """The layer's pixels at full opacity."""
    page.evaluate(OPAQUE)
    read = page.evaluate(LAYER)
    pixels = np.frombuffer(base64.b64decode(read["data"]), np.uint8)
    return pixels.reshape(read["height"], read["width"], 4)


def canvas_box(page: Page) -> Any:
    box = page.locator("#stage canvas").bounding_box()
    assert box is not None
    return box


def move_to(page: Page, x: float, y: float) -> None:
    """Move the pointer to a place of the image, as shares of its sides."""
    box = canvas_box(page)
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])


def check_scale(page: Page, values_HW: NDArray[np.floating]) -> None:
    """The layer has the colours of values, from the lowest to the highest."""
    shares_HW = (values_HW - values_HW.min()) / np.ptp(values_HW)
    places = np.linspace(0, 1, len(VIRIDIS))
    expected = np.stack([np.interp(shares_HW, places, channel) for channel in VIRIDIS.T], -1)
    # Sums of another order round elsewhere.
    np.testing.assert_allclose(layer_of(page)[..., :3], expected, atol=0.51)


def ask(
    service: RunningService, task: str, accept: str = "image/png", **options: Any
) -> httpx.Response:
    """The API's answer for the scene."""
    answer = httpx.post(
        f"{service.http_url}/v1/images:{task}",
        params=options,
        files={"image": SCENE.read_bytes()},
        headers={"Accept": accept},
        timeout=LIMIT_S,
    )
    assert answer.status_code == 200, answer.text
    return answer


def pixels_of(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def mask_of(service: RunningService, **options: Any) -> NDArray[np.uint8]:
    """The API's coloured mask, as RGB."""
    return pixels_of(ask(service, "segment", classes=",".join(CLASSES), **options).content)


def map_of(service: RunningService, task: str) -> NDArray[np.float32]:
    """The API's map of the scene, at the size of the head's output."""
    content = ask(service, task, "application/x-npy", size="model").content
    found: NDArray[np.float32] = np.squeeze(np.load(io.BytesIO(content)))
    return found


def download(page: Page, button: str) -> bytes:
    with page.expect_download() as waiting:
        page.click(button)
    return Path(waiting.value.path()).read_bytes()


def test_a_threshold_one_class_and_the_score_under_the_pointer(
    open_page: Open, service: RunningService
) -> None:
    page = open_page()
    upload_scene(page)
    page.click("summary")
    with page.expect_response(lambda answer: "background_threshold" in answer.url) as waiting:
        enter(page, "#threshold", str(THRESHOLD))
    wait(page, "document.querySelector('#legend').innerText.includes('background')")
    answered = waiting.value.json()["data"][0]
    expected = mask_of(service, background_threshold=THRESHOLD)
    painted = layer_of(page)
    has_class = painted[..., 3] == 255
    np.testing.assert_array_equal(painted[has_class][:, :3], expected[has_class])
    assert 0 < has_class.mean() < 1
    assert not expected[~has_class].any()
    colours, areas = np.unique(painted[has_class][:, :3], axis=0, return_counts=True)
    colour = "#" + bytes(colours[areas.argmax()]).hex()
    largest = next(found for found in answered["classes"] if found["color"] == colour)["name"]
    page.click(f"#legend button:has-text('{largest}')")
    alone = layer_of(page)[..., 3] == 255
    assert alone.sum() == areas.max()
    y, x = np.argwhere(alone)[alone.sum() // 2]
    # The mask has come without its scores, which are most of an answer.
    with page.expect_response(lambda answer: "include_scores" in answer.url) as waiting:
        move_to(page, (x + 0.5) / alone.shape[1], (y + 0.5) / alone.shape[0])
    scores = base64.b64decode(waiting.value.json()["data"][0]["scores"]["data"])
    score = np.frombuffer(scores, "<f4").reshape(alone.shape)[y, x]
    wait(page, "document.querySelector('#reading').textContent.includes('cosine')")
    assert page.inner_text("#reading") == f"{largest}, cosine {score:.3f}"


def test_exports_are_the_apis_answers_and_the_copied_line_repeats_them(
    open_page: Open, service: RunningService, tmp_path: Path
) -> None:
    page = open_page()
    upload_scene(page)
    png = pixels_of(download(page, "#save-png"))
    np.testing.assert_array_equal(png, mask_of(service))
    entry = json.loads(download(page, "#save-coco"))["data"][0]
    assert [one["name"] for one in entry["classes"]] == list(CLASSES)
    assert all("counts" in one["segmentation"] for one in entry["classes"])
    page.click("#copy-curl")
    wait(page, "document.querySelector('#toast').textContent === 'Copied.'")
    line = page.evaluate("navigator.clipboard.readText()")
    command = shlex.split(line.replace("image=@scene.png", f"image=@{SCENE}"))[1:]
    subprocess.run(["curl", "-sS", "--fail", *command], cwd=tmp_path, check=True, timeout=LIMIT_S)
    np.testing.assert_array_equal(pixels_of((tmp_path / "mask.png").read_bytes()), png)
    page.click("#copy-python")
    code = page.evaluate("navigator.clipboard.readText()").replace("scene.png", str(SCENE))
    found: dict[str, Any] = {}
    exec(compile(code, "copied", "exec"), found)
    assert [one.name for one in found["answer"].classes] == list(CLASSES)


def test_a_click_compares_every_patch_with_the_one_under_it_or_with_a_sentence(
    open_page: Open, service: RunningService
) -> None:
    page = open_page()
    page.set_input_files("#file", SCENE)
    page.click("#tab-features")
    wait(page, IS_IDLE)
    page.locator("#stage canvas").click(position={"x": 20, "y": 20})
    page.wait_for_selector("#stage i:not([hidden])")
    answer = ask(service, "embed", "application/json", outputs="patches", fit="aspect").json()
    patches = np.array(answer["data"][0]["patches"])
    page.locator("#stage canvas").hover(position={"x": 21, "y": 21})
    assert page.inner_text("#reading") == "cosine 1.000"
    check_scale(page, patches @ patches[0, 0])
    url, body = f"{service.http_url}/v1/texts:embed", {"texts": ["a yellow flower"]}
    text = httpx.post(url, json=body, timeout=LIMIT_S).json()["data"][0]["embedding"]
    page.check("[value=sentence]")
    enter(page, "#sentence", "a yellow flower")
    wait(page, IS_IDLE)
    check_scale(page, patches @ np.array(text))


def test_views_are_the_apis_and_the_status_shows_the_stages_of_their_request(
    open_page: Open, service: RunningService
) -> None:
    page = open_page()
    page.set_input_files("#file", SCENE)
    page.click("#tab-features")
    page.check("[value=colors]")
    wait(page, IS_IDLE)
    colours = ask(service, "features", size="model", kind="colors")
    np.testing.assert_array_equal(layer_of(page)[..., :3], pixels_of(colours.content))
    page.check("[value=groups]")
    enter(page, "#group-count", "4")
    wait(page, IS_IDLE)
    groups = ask(service, "features", size="model", kind="groups", group_count=4)
    np.testing.assert_array_equal(layer_of(page)[..., :3], pixels_of(groups.content))
    page.click("#tab-status")
    wait(page, "document.querySelector('#statistics').textContent.includes('in the queue')")
    assert page.inner_text("#timing p") == "v1/images:features, 200"
    stages = set(re.findall(r"(\w+);dur=", groups.headers["Server-Timing"]))
    assert stages <= {bar.split()[0] for bar in page.locator("#timing .bar").all_inner_texts()}
    assert "tipserve-student" in page.inner_text("#card")


def test_an_example_finds_its_like_in_this_image_and_in_another(
    open_page: Open, service: RunningService, tmp_path: Path
) -> None:
    """Each time the page shows the API's mask of its own request."""
    page = open_page()

    def check(act: Callable[[], object], images: list[Path], num_classes: int) -> Any:
        with page.expect_request("**/v1/images:segment") as waiting:
            act()
        body: Any = waiting.value.post_data_json
        sent = [base64.b64decode(one.partition(",")[2]) for one in body["images"]]
        assert sent == [image.read_bytes() for image in images]
        wait(page, LEGEND_HAS.format(num_classes))
        wait(page, IS_IDLE)
        url, as_labels = f"{service.http_url}/v1/images:segment", {"format": "mask"}
        answer = httpx.post(url, json=body | as_labels | {"encoding": "base64"}, timeout=LIMIT_S)
        found = answer.json()["data"][0]
        labels = np.frombuffer(base64.b64decode(found["labels"]["data"]), "<u2")
        of_classes = [(*bytes.fromhex(one["color"][1:]), 255) for one in found["classes"]]
        expected = np.array([(0, 0, 0, 0), *of_classes], np.uint8)[labels]
        np.testing.assert_array_equal(layer_of(page), expected.reshape(*layer_of(page).shape))
        assert (labels > 0).any()
        return [one["examples"] for one in body["classes"]]

    page.set_input_files("#file", SCENE)
    page.check("[value=examples]")
    move_to(page, 0.55, 0.2)
    page.mouse.down()
    move_to(page, 0.7, 0.4)
    ((first,),) = check(page.mouse.up, [SCENE], 1)
    height, width = pixels_of(SCENE.read_bytes()).shape[:2]
    wanted = [0.55 * width, 0.2 * height, 0.15 * width, 0.2 * height]
    np.testing.assert_allclose(first["box"], wanted, atol=3)
    # Then a point by keys.
    page.focus("#stage canvas")
    page.keyboard.press("ArrowLeft")
    # The page asks for the scores at that point.
    wait(page, IS_IDLE)
    check(lambda: page.keyboard.press("Enter"), [SCENE], 2)
    assert page.locator("#legend button").all_inner_texts() == ["example 1", "example 2"]
    other = tmp_path / "mirrored.png"
    with Image.open(SCENE) as scene:
        ImageOps.mirror(scene).save(other)
    check(lambda: page.set_input_files("#file", other), [other, SCENE], 2)
    page.click("#shown button >> nth=0")
    wait(page, LEGEND_HAS.format(1))


def test_depth_and_normals_are_drawn_with_their_scale_and_read(
    open_page: Open, dense_package: ModelPackage
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
        page.locator("#stage canvas").hover(position={"x": 1, "y": 1})
        assert page.inner_text("#reading") == f"{depth_HW[0, 0]:.2f} m"
        with page.expect_response("**/v1/images:normals*"):
            page.check("[value=normals]")
        wait(page, IS_IDLE)
        assert page.locator("#scale").is_hidden()
        normals_HW3 = map_of(service, "normals")
        np.testing.assert_allclose(layer_of(page)[..., :3], 127.5 * (normals_HW3 + 1), atol=0.51)


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


def test_a_user_of_the_keyboard_reaches_everything(open_page: Open) -> None:
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


@pytest.mark.parametrize(
    ("scheme", "width", "height"), [("dark", 800, 600), ("light", 390, 844), ("light", 1280, 844)]
)
def test_no_serious_finding_of_axe_and_everything_fits(
    open_page: Open, scheme: str, width: int, height: int
) -> None:
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": height})
    upload_scene(page)
    for selector in ("#stage", "#legend") if width >= 800 else ():
        box = page.locator(selector).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= height
    page.evaluate("document.querySelector('#tab-maps').hidden = false")  # of models with depth
    for selector in (
        "#tab-masks",
        "[value=examples]",
        "#tab-features",
        "#tab-search",
        "#tab-status",
    ):
        page.click(selector)
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
