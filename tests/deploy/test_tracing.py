"""The collector's configuration holds together, and is reached where the pods send to."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

KINDS = ("receivers", "processors", "exporters")


@pytest.fixture
def collector(project_root: Path) -> dict[str, Any]:
    page = project_root / "deploy" / "tracing" / "collector.yaml"
    read: dict[str, Any] = yaml.safe_load(page.read_text(encoding="utf-8"))
    return read


@pytest.fixture
def component(project_root: Path) -> Path:
    return project_root / "deploy" / "kubernetes" / "components" / "tracing"


def loose_ends(collector: dict[str, Any]) -> set[str]:
    """What is defined and not used, or used and not defined; a pipeline out of order."""
    pipelines = collector["service"]["pipelines"].values()
    used = {(kind, name) for pipeline in pipelines for kind in KINDS for name in pipeline[kind]}
    used |= {("extensions", name) for name in collector["service"]["extensions"]}
    defined = {(kind, name) for kind in (*KINDS, "extensions") for name in collector[kind]}
    limited = {pipeline["processors"][0] for pipeline in pipelines}
    return {name for _, name in used ^ defined} | (limited - {"memory_limiter"})


def test_every_part_of_the_collector_is_used(collector: dict[str, Any]) -> None:
    assert loose_ends(collector) == set()
    planted = deepcopy(collector)
    planted["service"]["pipelines"]["traces"]["exporters"] = ["otlp"]
    planted["service"]["pipelines"]["traces"]["processors"].reverse()
    assert loose_ends(planted) == {"otlp", "otlphttp", "batch"}


def test_pods_send_to_the_port_that_it_listens_on(
    collector: dict[str, Any], component: Path
) -> None:
    text = (component / "kustomization.yaml").read_text(encoding="utf-8")
    (sent_to,) = re.findall(r"TIPSERVE_OTLP_ENDPOINT=http://[a-z.-]+:(\d+)$", text, re.MULTILINE)
    (let_out,) = re.findall(r"- port: (\d+)$", text, re.MULTILINE)
    listened_on = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].split(":")[1]
    assert sent_to == let_out == listened_on


def test_the_pod_is_named_by_variables_that_stand_before(component: Path) -> None:
    """Kubernetes replaces `$(NAME)` only where the list has NAME already."""
    patch = yaml.safe_load((component / "pod_names.yaml").read_text(encoding="utf-8"))
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    known: set[str] = set()
    for variable in container["env"]:
        assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= known
        known.add(variable["name"])
    assert "OTEL_RESOURCE_ATTRIBUTES" in known
