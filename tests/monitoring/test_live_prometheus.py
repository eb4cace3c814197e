"""A real Prometheus and Alertmanager watch the real service under load, and tell of its faults."""

import io
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pytest
from PIL import Image

from tests.monitoring.callers import calling
from tests.monitoring.flood import flooding
from tests.monitoring.shortened_rules import shorten
from tests.monitoring.watched_site import WatchedSite, running_site

LIMIT_S: Final = 120.0
POLL_S: Final = 0.25
TARGET_DOWN: Final = "ReplicaDown"
REJECTED: Final = "Rejecting"
GROUPS: Final = [
    {
        "name": "faults",
        "rules": [
            {
                "alert": TARGET_DOWN,
                "expr": 'up{job="tipserve"} == 0',
                "for": "2m",
                "labels": {"severity": "critical"},
                "annotations": {"summary": "{{ $labels.pod }} does not answer."},
            },
            {
                "alert": REJECTED,
                "expr": 'sum by (job) (rate(tipserve_rejected_total{reason="queue_full"}[5m])) > 1',
                "for": "2m",
                "labels": {"severity": "warning"},
                "annotations": {"summary": "Requests are refused."},
            },
        ],
    }
]


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Look again and again until it holds."""
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until, f"still not: {what}"
        time.sleep(POLL_S)


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Some small photographs."""
    found = []
    for seed in range(8):
        colours = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(colours).resize((120, 120), Image.Resampling.BICUBIC).save(stream, "JPEG")
        found.append(stream.getvalue())
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, pictures: list[bytes]) -> Iterator[WatchedSite]:
    """Everything, with callers who ask all the time."""
    folder = tmp_path_factory.mktemp("site")
    with (
        running_site(folder, shorten(GROUPS)) as running,
        calling(running.steady, pictures[:2]),
    ):
        yield running


def wait_told(site: WatchedSite, alert: str, status: str, *, after: int) -> dict[str, Any]:
    """What the webhook is told of an alert, after so many notifications."""

    def found() -> list[dict[str, Any]]:
        alerts = site.receiver.notified[after:]
        return [a for a in alerts if (a["labels"]["alertname"], a["status"]) == (alert, status)]

    wait_until(found, f"{alert} {status}")
    return found()[0]


def wait_quiet(site: WatchedSite, alert: str) -> int:
    """Wait until an alert neither fires nor is about to; how many notifications there were."""
    wait_until(lambda: len(site.prometheus.query('up{job="tipserve"} == 1')) == 2, "both up")
    wait_until(lambda: alert not in site.prometheus.alerts(), f"{alert} inactive")
    return len(site.receiver.notified)


def test_both_replicas_are_scraped(site: WatchedSite) -> None:
    wait_until(lambda: len(site.prometheus.query('up{job="tipserve"} == 1')) == 2, "both up")
    assert {rule["health"] for rule in site.prometheus.rules()} <= {"ok", "unknown"}


def test_a_killed_replica_is_told_of_until_it_is_back(site: WatchedSite) -> None:
    before = wait_quiet(site, TARGET_DOWN)
    site.victim.kill()
    told = wait_told(site, TARGET_DOWN, "firing", after=before)
    assert told["labels"]["severity"] == "critical"
    assert told["annotations"]["summary"] == "victim does not answer."
    site.victim.come_back()
    wait_told(site, TARGET_DOWN, "resolved", after=before)


def test_a_flood_is_told_of_until_it_ends(site: WatchedSite, pictures: list[bytes]) -> None:
    before = wait_quiet(site, REJECTED)
    with flooding(f"{site.victim_url}/v1/images:embed", site.context, pictures) as statuses:
        told = wait_told(site, REJECTED, "firing", after=before)
    assert 429 in statuses
    assert told["labels"]["severity"] == "warning"
    wait_told(site, REJECTED, "resolved", after=before)
