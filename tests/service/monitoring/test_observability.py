"""Metric names follow the conventions, and dashboards find them."""

import re

from prometheus_client import generate_latest

from service.monitoring.metrics import Metrics

UNITS: tuple[str, ...] = ("_seconds", "_total", "_images", "_patches", "_texts", "_info", "_depth")
UNITS += ("_inflight", "_lanes", "_bytes", "_ratio", "_watts", "_celsius", "_cpus", "_ready")


def test_names_have_our_prefix_help_and_units(metrics: Metrics) -> None:
    for family in metrics.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        if name.startswith("process_"):
            continue
        assert re.fullmatch(r"tipserve_[a-z_]+", name)
        assert name.endswith(UNITS), name
        assert family.documentation.endswith("."), name


def test_queues_are_read_when_scraped(metrics: Metrics) -> None:
    metrics.watch_queue(lambda: {"image 28x28": 3}, lambda: 1.5)
    text = generate_latest(metrics.registry).decode()
    assert 'tipserve_queue_depth{bucket="image 28x28"} 3.0' in text
    assert "tipserve_queue_oldest_seconds 1.5" in text
    assert "_created" not in text


def test_a_batch_of_texts_counts_no_patches(metrics: Metrics) -> None:
    metrics.observe_batch("text", 5, 40)
    sample = metrics.registry.get_sample_value
    assert sample("tipserve_batch_texts_sum") == 5
    assert sample("tipserve_batch_patches_count") == 0
