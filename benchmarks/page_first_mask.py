"""Time until the page paints its first mask, against the same request by HTTP.

Claim: in a page that has just been opened, the mask of an uploaded image is painted within 1.3
times the time of the page's own request, from the Enter after the class names. For comparison the
script also clicks an example, which loads its image first. Each round uses a new browser profile,
and sends the page's request again from this process, over a connection of its own.
Run: python -m benchmarks.page_first_mask [--rounds 15] [--model bundled]; needs /usr/bin/chromium
"""

import argparse
import os
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
# Milliseconds from a key or a click until the first frame that has the mask and its legend.
TIMED: Final = """(target) => new Promise((resolve) => {
  const legend = document.querySelector("#legend");
  const begun = performance.now();
  new MutationObserver((_, observer) => {
    if (!legend.querySelector("button")) return;
    observer.disconnect();
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - begun)));
  }).observe(legend, { childList: true });
  if (target.matches("button")) target.click();
  else target.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
})"""


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def page_ms(browser: Browser, url: str, *, is_example: bool) -> tuple[float, str]:
    """Milliseconds until the first mask of a new page, and the URL of its one request for it."""
    context = browser.new_context()
    try:
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
        elapsed_ms: float = target.evaluate(TIMED)
        (requested,) = urls
        return elapsed_ms, requested
    finally:
        context.close()


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
    times: dict[str, list[float]] = {"Enter": [], "example": [], "request": []}
    for turn in range(rounds + 1):
        typed, requested = page_ms(browser, url, is_example=False)
        clicked, _ = page_ms(browser, url, is_example=True)
        alone = http_ms(requested)
        if turn:  # the first round fills the caches of model and texts
            for name, one in zip(times, (typed, clicked, alone), strict=True):
                times[name].append(one)
    base = statistics.median(times["request"])
    for name, found in times.items():
        middle = statistics.median(found)
        print(
            f"{name:<8} {middle:6.0f} ms ({min(found):.0f} to {max(found):.0f}), "
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
