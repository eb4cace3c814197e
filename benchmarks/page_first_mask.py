"""Time until the page's first mask is displayed, against the same request by HTTP.

Claim: in a page that has just been opened, the mask of an uploaded image is displayed within 1.3
times the time of the page's own request, from the Enter after the class names. The end is when
Chromium's compositor has displayed the frame, by Chromium's trace; a screen shows it at its next
refresh. The script also prints when mask and legend are displayed, and both from the click on an
example, which loads its image first. Each round uses a new browser profile, and sends the page's
request again from this process, over a connection of its own.
Run: python -m benchmarks.page_first_mask [--rounds 15] [--model bundled]; needs /usr/bin/chromium
"""

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
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
LIMIT_S: Final = 60.0
# Marks when a page has drawn into canvases; pages begin to draw with one of these calls.
DRAWN: Final = """() => {
  for (const kind of [CanvasRenderingContext2D, OffscreenCanvasRenderingContext2D]) {
    for (const name of ["clearRect", "drawImage", "putImageData"]) {
      const draw = kind.prototype[name];
      kind.prototype[name] = function (...values) {
        draw.apply(this, values);
        queueMicrotask(() => performance.mark("drawn"));
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
    requestAnimationFrame(() => {
      performance.mark("listed");
      // The next frame of the page begins when that one is finished.
      requestAnimationFrame(() => setTimeout(resolve, 200));
    });
  }).observe(legend, { childList: true });
  performance.mark("begun");
  if (target.matches("button")) target.click();
  else target.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
})"""
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


def page_ms(browser: Browser, url: str, *, is_example: bool) -> tuple[tuple[float, float], str]:
    """Times of the first mask of a new page, as of `displayed_ms`, and the URL of its request."""
    context = browser.new_context()
    try:
        context.add_init_script(f"({DRAWN})()")
        page = context.new_page()
        urls: list[str] = []
        page.on("request", lambda one: urls.append(one.url) if ":segment" in one.url else None)
        page.goto(url, wait_until="networkidle")
        target: Any = page.locator("#examples button").first
        if not is_example:
            page.set_input_files("#file", SCENE)
            page.wait_for_selector("#stage img")
            page.fill("#classes-input", CLASSES)
            target = page.locator("#classes-input")
        browser.start_tracing(page=page, categories=list(CATEGORIES))
        target.evaluate(ACT)
        trace = json.loads(browser.stop_tracing())
        (requested,) = urls
        return displayed_ms(trace["traceEvents"]), requested
    finally:
        context.close()


def displayed_ms(events: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Milliseconds from the key or click until the display has the mask, and mask and legend."""

    def times(name: str) -> list[float]:
        return [event["ts"] for event in events if event["name"] == name]

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
    """Milliseconds of a request, until the whole answer is there."""
    image = SCENE.read_bytes()
    with httpx.Client(timeout=LIMIT_S) as client:
        begun = time.perf_counter()
        answer = client.post(url, files={"image": (SCENE.name, image)})
        elapsed_ms = 1000 * (time.perf_counter() - begun)
        answer.raise_for_status()
    return elapsed_ms


def measure(browser: Browser, url: str, rounds: int) -> None:
    """Alternate pages and requests, and print medians and their ratios."""
    times: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        entered, requested = page_ms(browser, url, is_example=False)
        clicked, _ = page_ms(browser, url, is_example=True)
        found = {
            "request": http_ms(requested),
            "Enter to mask": entered[0],
            "Enter to mask and legend": entered[1],
            "example to mask": clicked[0],
            "example to mask and legend": clicked[1],
        }
        if turn:  # the first round fills the caches of model and texts
            for name, one in found.items():
                times.setdefault(name, []).append(one)
    base = statistics.median(times["request"])
    for name, all_ms in times.items():
        middle = statistics.median(all_ms)
        print(
            f"{name:<26} {middle:6.1f} ms ({min(all_ms):.0f} to {max(all_ms):.0f}), "
            f"{middle / base:.2f} times the request"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the page of a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
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
