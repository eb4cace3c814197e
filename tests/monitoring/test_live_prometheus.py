"""A real Prometheus and Alertmanager monitor the real service and report its faults."""

import io
import itertools
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, Final

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from tests.monitoring.dashboard_file import Query, queries
from tests.monitoring.prometheus_queries import (
    CLUSTER_SERIES,
    GPU_SERIES,
    divided,
    selectors,
    shorten,
)
from tests.monitoring.rule_file import FOLDER, GROUPS, Group
from tests.monitoring.traffic import ask_hurriedly, calling, flooding
from tests.monitoring.watched_site import KEY, NAMESPACE, WatchedSite, running_site

COMPONENTS: Final = FOLDER.parent / "kubernetes" / "components"
LIMIT_S: Final = 120.0
POLL_S: Final = 0.25
RATE_INTERVAL: Final = "10s"
BOTH_UP: Final = 'count(up{job="tipserve"} == 1) == 2'
# Not on test machines: a GPU, a memory limit outside of containers, and kube-state-metrics.
ABSENT: Final = GPU_SERIES | CLUSTER_SERIES | {"tipserve_memory_limit_bytes"}
# Panels that are empty unless there is a fault or a change.
ONLY_OF_FAULTS: Final = {
    "Alerts that fire A",
    "Refused by reason A",
    "Refused by model A",
    "Faults by method and status A",
    "Faults by model and status A",
}
ONLY_OF_CHANGES: Final = {"New models and versions"}
# Series of faults; absent before the first fault.
FAULTS_READ: Final = re.compile(r'code=~"(5|UNKNOWN)|reason=')
LATE_RPCS: Final = 'tipserve_model_requests_total{code="DEADLINE_EXCEEDED"}'
Labels = Mapping[str, str]


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Poll until the condition holds."""
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until, f"still not: {what}"
        time.sleep(POLL_S)


def wait_notified(site: WatchedSite, status: str, labels: Labels, *, after: int) -> dict[str, Any]:
    """Wait for an alert at the webhook, after this many notifications."""

    def found() -> list[dict[str, Any]]:
        return [
            alert
            for alert in site.receiver.notified[after:]
            if alert["status"] == status and labels.items() <= alert["labels"].items()
        ]

    wait_until(found, f"{labels} {status}")
    return found()[0]


def wait_quiet(site: WatchedSite, labels: Labels) -> int:
    """Wait until an alert is neither firing nor pending; returns the number of notifications."""

    def is_quiet() -> bool:
        return not any(labels.items() <= alert.items() for alert in site.prometheus.alerts())

    wait_until(lambda: site.prometheus.query(BOTH_UP), "both replicas are up")
    wait_until(is_quiet, f"{labels} inactive")
    return len(site.receiver.notified)


def wait_answered(site: WatchedSite, asked: Iterable[Query]) -> None:
    """Wait until each query has had a non-empty answer."""
    left = list(asked)
    assert left

    def none_left() -> bool:
        left[:] = [query for query in left if not site.prometheus.query(query.expression)]
        return not left

    try:
        wait_until(none_left, "all answered")
    except AssertionError:
        raise AssertionError(left) from None


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """Some small photographs."""
    found = []
    for seed in range(8):
        colours = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(colours).resize((120, 120), Image.Resampling.BICUBIC).save(stream, "JPEG")
        found.append(stream.getvalue())
    return found


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    """The shipped rules on a faster clock; thresholds are unchanged."""
    shortened = deepcopy(GROUPS)
    for group in shortened:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule["expr"] = shorten(str(rule["expr"]))
            for name in {"for", "keep_firing_for"} & rule.keys():
                rule[name] = divided(rule[name], at_least_s=0)
    return shortened


@pytest.fixture(scope="module")
def read(groups: list[Group]) -> list[Query]:
    """Single selectors of the rules, without series absent on this machine."""
    rules = [rule for group in groups for rule in group["rules"]]
    return selected(Query(rule.get("record", rule.get("alert")), rule["expr"]) for rule in rules)


@pytest.fixture(scope="module")
def drawn() -> list[Query]:
    """The dashboard's queries, shortened like the rules."""
    return [Query(q.place, shorten(q.filled(RATE_INTERVAL))) for q in queries()]


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, groups: list[Group], images: list[bytes]
) -> Iterator[WatchedSite]:
    """The whole site, with callers under constant load."""
    routing = FOLDER / "standalone" / "alertmanager.yml"
    with (
        running_site(tmp_path_factory.mktemp("site"), groups, routing) as running,
        calling(running.steady, images[:2]),
    ):
        yield running


def test_every_rule_is_loaded_and_computed(site: WatchedSite, groups: list[Group]) -> None:
    wait_until(lambda: all(r["health"] == "ok" for r in site.prometheus.rules()), "rules computed")
    assert len(site.prometheus.rules()) == sum(len(group["rules"]) for group in groups)


def test_everything_drawn_has_data(site: WatchedSite, drawn: list[Query]) -> None:
    silent = ONLY_OF_FAULTS | ONLY_OF_CHANGES
    assert silent <= {query.place for query in drawn}
    wait_answered(site, [q for q in drawn if q.place not in silent and not reads_absent(q)])
    # Panels that may be empty still read existing series.
    quiet = [query for query in drawn if query.place in ONLY_OF_CHANGES]
    wait_answered(site, selected(quiet))


def test_every_series_of_a_rule_exists(
    site: WatchedSite, groups: list[Group], read: list[Query]
) -> None:
    records = [rule["record"] for group in groups for rule in group["rules"] if "record" in rule]
    always = [query for query in read if not FAULTS_READ.search(query.expression)]
    wait_answered(site, [*always, *(Query(name, name) for name in records)])


def test_autoscalers_get_one_number_each(site: WatchedSite) -> None:
    path = COMPONENTS / "keda" / "scaledobject.yaml"
    triggers = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["triggers"]
    asked = [Query(trigger["name"], trigger["metadata"]["query"]) for trigger in triggers]
    path = COMPONENTS / "hpa" / "prometheus_adapter.yaml"
    rules = yaml.safe_load(path.read_text(encoding="utf-8"))["rules"]["external"]
    asked = [Query(q.place, q.expression.replace('"default"', f'"{NAMESPACE}"')) for q in asked]
    # The adapter fills in the namespace of the autoscaler, and its selector.
    labels = f'namespace="{NAMESPACE}",job="tipserve"'
    asked += [
        Query(rule["name"]["as"], rule["metricsQuery"].replace("<<.LabelMatchers>>", labels))
        for rule in rules
    ]
    wait_answered(site, [Query(rule["name"]["as"], rule["seriesQuery"]) for rule in rules])

    def has_one_number(query: Query) -> bool:
        samples = site.prometheus.query(query.expression)
        return len(samples) == 1 and 0 <= float(samples[0]["value"][1]) < math.inf

    for query in asked:
        wait_until(partial(has_one_number, query), f"{query.place} has one number")


def test_a_killed_replica_is_reported_until_it_restarts(
    site: WatchedSite, drawn: list[Query]
) -> None:
    labels = {"alertname": "TipserveReplicaDown", "pod": "victim"}
    before = wait_quiet(site, labels)
    site.victim.kill()
    alert = wait_notified(site, "firing", labels, after=before)
    assert alert["labels"].items() >= {"namespace": NAMESPACE, "severity": "warning"}.items()
    assert alert["receiver"] == "team"
    assert alert["annotations"]["summary"].endswith(" cannot be scraped")
    assert alert["annotations"]["runbook_url"].endswith("#tipservereplicadown")
    (table,) = [query for query in drawn if query.place == "Alerts that fire A"]

    def is_shown() -> bool:
        shown = [sample["metric"] for sample in site.prometheus.query(table.expression)]
        return any(labels.items() <= one.items() for one in shown)

    wait_until(is_shown, "the alert is in the table")
    wait_until(lambda: number(site, drawn, "Ready replicas") == 1, "one is ready")
    wait_until(lambda: number(site, drawn, "Not ready or down") == 1, "one is down")
    wait_until(lambda: number(site, drawn, "Alerts") >= 1, "the alert is counted")
    site.victim.come_back()
    wait_notified(site, "resolved", labels, after=before)


def test_a_flood_is_reported_until_it_ends(
    site: WatchedSite, images: list[bytes], drawn: list[Query], read: list[Query]
) -> None:
    # This page inhibits TipserveRefusing, which has the reasons.
    refusing = {"alertname": "TipserveCapacityBudgetBurnFast", "severity": "critical"}
    burning = {"alertname": "TipserveErrorBudgetBurnFast", "severity": "critical"}
    before = wait_quiet(site, refusing)
    url = f"{site.victim_url}/v1/images:embed"
    with flooding(url, site.context, KEY, images) as statuses:
        alert = wait_notified(site, "firing", refusing, after=before)
        assert alert["labels"].items() >= {"namespace": NAMESPACE, "job": "tipserve"}.items()
        assert alert["receiver"] == "on-call"
        assert alert["annotations"]["summary"] == "tipserve refuses callers for want of room"
        assert wait_notified(site, "firing", burning, after=before)["receiver"] == "on-call"
        ask_what_is_refused(site, url)
        faults = [query for query in drawn if query.place in ONLY_OF_FAULTS]
        faults += [query for query in read if FAULTS_READ.search(query.expression)]
        wait_answered(site, faults)
        wait_until(lambda: number(site, drawn, "Faults") > 0, "faults are counted")
        wait_until(lambda: number(site, drawn, "Refused") > 0, "refusals are counted")
    assert {429, 504} <= set(statuses)
    wait_notified(site, "resolved", refusing, after=before)


def ask_what_is_refused(site: WatchedSite, url: str) -> None:
    """Send a wrong key, and an RPC with too short a deadline."""
    stranger = httpx.post(url, headers={"X-Api-Key": "?"}, verify=site.context, timeout=LIMIT_S)
    assert stranger.status_code == 401
    address, numbers = f"127.0.0.1:{site.steady.ports['grpc']}", itertools.count()

    def is_counted() -> bool:
        # On a busy machine the client's deadline may expire before the server's.
        ask_hurriedly(address, next(numbers))
        return bool(site.prometheus.query(LATE_RPCS))

    wait_until(is_counted, "the server counts an RPC that is late")


def number(site: WatchedSite, drawn: Iterable[Query], title: str) -> float:
    """Return the number of the panel with this title; NaN if it has none (late scrape)."""
    (query,) = [query for query in drawn if query.place == f"{title} A"]
    samples = site.prometheus.query(query.expression)
    return float(samples[0]["value"][1]) if len(samples) == 1 else math.nan


def reads_absent(query: Query) -> bool:
    """Whether it reads series absent on this machine."""
    return any(selector.name in ABSENT for selector in selectors(query.expression))


def selected(asked: Iterable[Query]) -> list[Query]:
    """Single selectors of these expressions, without series absent on this machine."""
    return [
        Query(query.place, selector.prettify())
        for query in asked
        for selector in selectors(query.expression)
        if selector.name not in ABSENT
    ]
