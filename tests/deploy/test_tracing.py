"""The collector's configuration is consistent and fits the pods' variables."""

import re

import yaml

from tests.deploy import kustomizations
from tests.deploy.workloads import of_kind, workloads

KINDS = ("receivers", "processors", "exporters")
COLLECTOR = yaml.safe_load(
    (kustomizations.DEPLOY / "tracing" / "collector.yaml").read_text(encoding="utf-8")
)


def test_every_part_of_the_collector_is_defined_and_used() -> None:
    pipelines = COLLECTOR["service"]["pipelines"].values()
    used = {(kind, name) for pipeline in pipelines for kind in KINDS for name in pipeline[kind]}
    used |= {("extensions", name) for name in COLLECTOR["service"]["extensions"]}
    assert used == {(kind, name) for kind in (*KINDS, "extensions") for name in COLLECTOR[kind]}
    assert {pipeline["processors"][0] for pipeline in pipelines} == {"memory_limiter"}


def test_pods_may_send_to_the_collectors_port() -> None:
    documents = kustomizations.build("kubernetes/components/tracing")
    (settings,) = of_kind(documents, "ConfigMap")
    sent_to = re.fullmatch(r"http://[a-z.-]+:(\d+)", settings["data"]["TIPSERVE_OTLP_ENDPOINT"])
    assert sent_to
    listened_on = COLLECTOR["receivers"]["otlp"]["protocols"]["http"]["endpoint"].split(":")[1]
    assert sent_to[1] == listened_on
    (policy,) = of_kind(documents, "NetworkPolicy")
    allowed = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
    assert int(listened_on) in allowed


def test_variables_refer_to_earlier_ones() -> None:
    """Kubernetes replaces `$(NAME)` only if NAME comes earlier in the list."""
    (workload,) = workloads(kustomizations.build("kubernetes/components/tracing"))
    (container,) = workload.containers
    known: set[str] = set()
    for variable in container["env"]:
        assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= known
        known.add(variable["name"])
    assert "OTEL_RESOURCE_ATTRIBUTES" in known
