"""Time until the page's first mask is displayed, against the same request by HTTP.

Claim: in a page that has just been opened, the mask of an uploaded image is displayed within 1.3
times the time of the page's own request, from the Enter after the class names. The end is when
Chromium's compositor has displayed the frame, by Chromium's trace; a screen shows it at its next
refresh. The script also prints when mask and legend are displayed, and both from the click on an
example, which loads its image first. A bare page that only sends the request and draws ready pixels
shows what the browser takes itself. Each page is of a new browser profile, without developer tools.
This process sends the page's request, over a connection of its own, before and after each page's
own; all of them wait until the programs rest. Ratios are of medians.
Run: python -m benchmarks.page_first_mask [--rounds 20] [--model bundled]; needs /usr/bin/chromium
"""

import argparse
import base64
import itertools
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Browser, sync_playwright

from benchmarks.service_process import running_service

CHROMIUM: Final = "/usr/bin/chromium"
# It requests nothing from the network, and runs as root in a container.
FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
SCENE: Final = Path("examples/scene.png")
CLASSES: Final = "burger, sunflower, book"
# What the page asks for.
REQUEST: Final = (
    "/v1/images:segment?classes=burger%2Csunflower%2Cbook&format=rle_counts&include_instances=true"
)
LIMIT_S: Final = 60.0
# Before each measured time, so that the programs end what they did before.
PAUSE_S: Final = 0.3
# Nothing else runs while the page answers a key; longer than that takes on quiet cores.
ACT_S: Final = 0.5
WINDOW: Final[dict[str, Any]] = {
    "width": 1280,
    "height": 720,
    "deviceScaleFactor": 1,
    "mobile": False,
}
NUM_RESAMPLES: Final = 1000
# Marks when a page has drawn into canvases; pages begin to draw with one of these calls.
DRAWN: Final = """() => {
  for (const kind of [CanvasRenderingContext2D, OffscreenCanvasRenderingContext2D]) {
    for (const name of ["clearRect", "drawImage", "putImageData"]) {
      const draw = kind.prototype[name];
      kind.prototype[name] = function (...values) {
        draw.apply(this, values);
        queueMicrotask(() => performance.measure("drawn"));
      };
    }
  }
}"""
# Marks the key or the click, and the first frame of the page that has the mask and its legend.
ACT: Final = """(target) => new Promise((resolve) => {
  const legend = document.querySelector("#legend");
  new MutationObserver((_, observer) => {
    if (!legend.querySelector("button")) return;
    observer.disconnect();
    // In this frame of the page or in the next, before it is painted.
    new ResizeObserver((_, sizes) => {
      sizes.disconnect();
      performance.measure("listed");
      // The next frame of the page begins when that one is finished.
      requestAnimationFrame(() => setTimeout(resolve, 200));
    }).observe(legend);
  }).observe(legend, { childList: true });
  performance.measure("ready"); // the first one of a trace takes time
  performance.measure("begun");
  if (target.matches("button")) target.click();
  else target.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
})"""
# A page with nothing but a layer: after the key it sends the request, and draws ready pixels when
# the answer has been read. What it takes is the browser's own.
BARE: Final = """([request, image]) => {
  const layer = document.createElement("canvas");
  const legend = document.createElement("div");
  legend.id = "legend";
  document.body.replaceChildren(layer, legend);
  const context = layer.transferControlToOffscreen().getContext("2d");
  const { canvas } = context;
  canvas.width = canvas.height = 448;
  const pixels = new ImageData(448, 448);
  pixels.data.fill(200);
  const form = new FormData();
  form.append("image", new File([Uint8Array.fromBase64(image)], "scene.png"));
  const body = new Response(form);
  const type = body.headers.get("Content-Type");
  const headers = { "Accept": "application/json", "Content-Type": type };
  return body.arrayBuffer().then((bytes) => {
    document.body.addEventListener("keydown", async () => {
      const answer = await fetch(request, { method: "POST", body: bytes, headers });
      await answer.json();
      context.putImageData(pixels, 0, 0);
      setTimeout(() => legend.append(document.createElement("button")), 50);
    });
  });
}"""
REQUESTED: Final = "performance.getEntriesByType('resource').map(({ name }) => name)"
# Frames that reach Chromium's compositor, frames that it has displayed, and the marks above.
CATEGORIES: Final = ("viz", "blink.user_timing")
# From here on numbers of frame sinks are those of canvases with frames of their own.
FIRST_CANVAS: Final = 2**31


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page of a new browser profile, by Chromium's protocol.

    Playwright's pages log each request for its developer tools, with a copy of the body. Users
    of a page have no such tools.
    """

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._protocol = browser.new_browser_cdp_session()
        self._answers: dict[int, dict[str, Any]] = {}
        self._numbers = itertools.count(1)
        self._protocol.on("Target.receivedMessageFromTarget", self._receive)
        self._profile = self._protocol.send("Target.createBrowserContext")["browserContextId"]
        target = self._protocol.send(
            "Target.createTarget", {"url": "about:blank", "browserContextId": self._profile}
        )
        attached = self._protocol.send(
            "Target.attachToTarget", {"targetId": target["targetId"], "flatten": False}
        )
        self._session = attached["sessionId"]
        self.call("Page.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=f"({DRAWN})()")
        self.call("Emulation.setDeviceMetricsOverride", **WINDOW)
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def close(self) -> None:
        """Close the page and remove its profile."""
        self._protocol.send("Target.disposeBrowserContext", {"browserContextId": self._profile})
        self._protocol.detach()

    def call(self, method: str, *, pause_s: float = 0.0, **values: Any) -> dict[str, Any]:
        """Call a method of the protocol; its answer is not asked for before the pause ends."""
        number = next(self._numbers)
        message = json.dumps({"id": number, "method": method, "params": values})
        self._protocol.send(
            "Target.sendMessageToTarget", {"sessionId": self._session, "message": message}
        )
        time.sleep(pause_s)
        deadline = time.monotonic() + LIMIT_S
        while number not in self._answers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"Chromium does not answer {method}")
            time.sleep(0.005)
            self._protocol.send("Browser.getVersion")  # lets Playwright read what has come
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def evaluate(self, expression: str, pause_s: float = 0.0) -> Any:
        """The value of an expression, or of its promise."""
        found = self.call(
            "Runtime.evaluate",
            pause_s=pause_s,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression[:80]}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + LIMIT_S
        while not self.evaluate(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(condition)
            time.sleep(0.05)

    def upload(self, selector: str, path: Path) -> None:
        """Choose a file in an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve())])

    def first_mask_ms(self, selector: str) -> tuple[float, float]:
        """Times of the first mask after Enter in an input or a click, as of `displayed_ms`."""
        time.sleep(PAUSE_S)
        self._browser.start_tracing(categories=list(CATEGORIES))
        time.sleep(PAUSE_S)
        self.evaluate(f"({ACT})(document.querySelector({selector!r}))", ACT_S)
        return displayed_ms(json.loads(self._browser.stop_tracing())["traceEvents"])

    def _receive(self, event: dict[str, Any]) -> None:
        message = json.loads(event["message"])
        if "id" in message:
            self._answers[message["id"]] = message


def displayed_ms(events: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Milliseconds from the key or click until the display has the mask, and mask and legend."""

    def times(name: str) -> list[float]:
        # A measure has two events; its end is the time of the call.
        return [event["ts"] for event in events if event["name"] == name and event["ph"] != "b"]

    commits = [event for event in events if event["name"] == "Surface::CommitFrame"]
    of_page = [event["ts"] for event in commits if _sink(event) < FIRST_CANVAS]
    of_canvas = [event["ts"] for event in commits if _sink(event) >= FIRST_CANVAS]
    displays = times("Display::FrameDisplayed")
    (begun,) = times("begun")

    def displayed(marked: float, committed: list[float]) -> float:
        frame = min(time for time in committed if time > marked)
        return (min(time for time in displays if time > frame) - begun) / 1000

    return (
        displayed(max(times("drawn")), of_canvas or of_page),
        displayed(max(times("listed")), of_page),
    )


def _sink(commit: dict[str, Any]) -> int:
    found = re.search(r"FrameSinkId\(\d+, (\d+)\)", commit["args"]["SurfaceId"])
    assert found is not None
    return int(found[1])


def http_ms(url: str) -> float:
    """Milliseconds of a request over a new connection, until the whole answer is there."""
    image = SCENE.read_bytes()
    with httpx.Client(timeout=LIMIT_S) as client:
        time.sleep(PAUSE_S)
        begun = time.perf_counter()
        answer = client.post(url, files={"image": (SCENE.name, image)})
        elapsed_ms = 1000 * (time.perf_counter() - begun)
        answer.raise_for_status()
    return elapsed_ms


def uploaded_round(browser: Browser, url: str) -> dict[str, tuple[float, ...]]:
    """Times of a new page with an uploaded image, and of its request before and after it."""
    with closing(Tab(browser, url)) as tab:
        tab.wait("document.querySelector('#model option') !== null")
        tab.upload("#file", SCENE)
        tab.wait("document.querySelector('#stage img').naturalWidth > 0")
        tab.evaluate("document.querySelector('#classes-input').focus()")
        tab.call("Input.insertText", text=CLASSES)
        before_ms = http_ms(url + REQUEST)
        mask_ms, legend_ms = tab.first_mask_ms("#classes-input")
        assert url + REQUEST in tab.evaluate(REQUESTED)
        return {
            "request": (before_ms, http_ms(url + REQUEST)),
            "Enter to mask": (mask_ms,),
            "Enter to mask and legend": (legend_ms,),
        }


def bare_round(browser: Browser, url: str) -> dict[str, tuple[float, ...]]:
    """Times of a page that only sends the request and draws ready pixels, and of its request."""
    image = base64.b64encode(SCENE.read_bytes()).decode()
    # Any page of the same origin; its own content is removed.
    with closing(Tab(browser, url + "/v1/models")) as tab:
        tab.evaluate(f"({BARE})({json.dumps([url + REQUEST, image])})")
        before_ms = http_ms(url + REQUEST)
        pixels_ms, _ = tab.first_mask_ms("body")
        return {
            "bare page: request": (before_ms, http_ms(url + REQUEST)),
            "bare page: Enter to pixels": (pixels_ms,),
        }


def clicked_round(browser: Browser, url: str) -> dict[str, tuple[float, ...]]:
    """Times of a new page from the click on an example."""
    with closing(Tab(browser, url)) as tab:
        tab.wait("document.querySelector('#model option') !== null")
        mask_ms, legend_ms = tab.first_mask_ms("#examples button")
        return {"example to mask": (mask_ms,), "example to mask and legend": (legend_ms,)}


def measure(browser: Browser, url: str, rounds: int) -> None:
    """Alternate pages and requests, and print medians and their ratios with 95 % intervals."""
    times: dict[str, list[tuple[float, ...]]] = {}
    for turn in range(rounds + 1):
        for play in (uploaded_round, bare_round, clicked_round):
            for name, found in play(browser, url).items():
                if turn:  # the first round fills the caches of model and texts
                    times.setdefault(name, []).append(found)
    for name, all_ms in times.items():
        base = times["bare page: request" if name.startswith("bare") else "request"]
        times_NT, base_NT = np.array(all_ms), np.array(base)
        low, high = ratio_interval(times_NT, base_NT)
        middle = np.median(times_NT)
        print(
            f"{name:<26} {middle:6.1f} ms ({times_NT.min():.0f} to {times_NT.max():.0f}), "
            f"{middle / np.median(base_NT):.2f} [{low:.2f}, {high:.2f}] times the request"
        )


def ratio_interval(
    times_NT: NDArray[np.float64], base_NT: NDArray[np.float64]
) -> tuple[float, float]:
    """95 % interval of a ratio of medians, by resampling the rounds."""
    drawn_RN = np.random.default_rng(0).integers(len(base_NT), size=(NUM_RESAMPLES, len(base_NT)))
    ratios_R = [np.median(times_NT[one_N]) / np.median(base_NT[one_N]) for one_N in drawn_RN]
    low, high = np.percentile(ratios_R, [2.5, 97.5])
    return float(low), float(high)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the page of a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--model", default="bundled", help="the service's default by default")
    options = parser.parse_args(arguments)
    rounds: int = options.rounds
    with running_service(f"--model={options.model}") as service, opened_browser() as browser:
        print(
            f"{options.model}, {SCENE.name}, {CLASSES}; {os.cpu_count()} cores, load "
            f"{os.getloadavg()[0]:.1f}; Chromium {browser.version}; medians of {rounds} rounds"
        )
        measure(browser, service.http_url, rounds)


if __name__ == "__main__":
    main()
