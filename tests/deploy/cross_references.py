"""Faults of manifests that no schema knows: names, numbers and meanings that disagree.

Every check takes documents that are applied together and yields one sentence per fault.
"""

import os
import re
from collections.abc import Iterator
from math import ceil, floor
from unittest.mock import patch

from grpc_health.v1 import health

from service.grpc.server import INFERENCE_SERVICE, SERVICE_NAME
from service.monitoring.metrics_server import LIVE, READY
from service.server import LOG_GRACE_S, TRACE_GRACE_S, WRITE_GRACE_S, max_caller_bytes
from service.settings import Settings, load_settings
from tests.deploy.kustomizations import DEPLOY
from tests.deploy.workloads import (
    Manifest,
    Workload,
    called,
    nodes,
    of_kind,
    selects,
    variables,
    workloads,
)
from tests.monitoring.prometheus_queries import known_series, metric_names

Faults = Iterator[str]
# Annotation `expects/NAME: KIND` for an object that the cluster must already have.
EXPECTS = "expects/"
# What a pod refers to, by the field that holds the reference; a Secret is named so in several ways.
REFERRED = {"persistentVolumeClaim": "PersistentVolumeClaim", "serviceAccount": "ServiceAccount"}
REFERRED |= dict.fromkeys(("secret", "secretRef", "secretKeyRef"), "Secret")
REFERRED |= dict.fromkeys(("configMap", "configMapRef", "configMapKeyRef"), "ConfigMap")
DNS_PORTS = (53, 5353)
METRICS_PORTS = {"metrics", "proxy-metrics"}
# The only label that every namespace has, and the topologies that every node has.
NAMESPACE = "kubernetes.io/metadata.name"
TOPOLOGIES = {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
# gRPC services that callers of any route need; reflection is for people at a server's own port.
GRPC_PATHS = {f"/{name}" for name in (SERVICE_NAME, INFERENCE_SERVICE, health.SERVICE_NAME)}
# Of a process with the bundled model, measured under some load.
RESIDENT_BYTES = 269 * 2**20
# One buffer of nginx for each connection.
CONNECTION_BYTES = 16 * 2**10
PROXY = (DEPLOY / "proxy" / "start.sh").read_text(encoding="utf-8")
# Seconds until a failing probe acts: deploy/README.md, "Probes".
ACTS_S = {"startup": range(180, 601), "readiness": range(5, 11), "liveness": range(60, 121)}
# Thresholds that make sense: seconds of wait, busy share of the lanes.
THRESHOLDS = {"queue-wait": (0.1, 10.0), "busy-lanes": (0.1, 0.95)}
SECRET_NAME = re.compile(r"(KEY|KEYS|TOKEN|PASSWORD|SECRET|CREDENTIALS)$", re.IGNORECASE)


def faults(documents: list[Manifest]) -> list[str]:
    """All faults of documents that are applied together."""
    checks = (
        selectors,
        service_ports,
        policy_ports,
        routes,
        objects,
        pods,
        availability,
        monitors,
        scaling,
        servers,
        secrets,
    )
    return [fault for check in checks for fault in check(documents)]


def selectors(documents: list[Manifest]) -> Faults:
    """Selectors select pods, those of a workload its own only, and each pod has a policy."""
    every, protected = workloads(documents), set[str]()
    for workload in every:
        selector = workload.document["spec"].get("selector")
        if selector and [one for one in every if selects(selector, one.labels)] != [workload]:
            yield f"{workload}: its selector selects others, or not its own"
    for document in of_kind(documents, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        chosen = {str(one) for one in selected(document, every)}
        if document["kind"] == "NetworkPolicy":
            protected |= chosen
        elif len(chosen) > 1:
            yield f"{called(document)}: selects the pods of several: {sorted(chosen)}"
        if not chosen:
            yield f"{called(document)}: selects no pod of these documents"
    yield from (f"{one}: no NetworkPolicy selects it" for one in every if str(one) not in protected)


def selected(document: Manifest, every: list[Workload]) -> list[Workload]:
    """The workloads whose pods a Service, a budget or a policy selects."""
    spec = document["spec"]
    if document["kind"] == "Service":
        # Without a selector it selects nothing.
        selector = {"matchLabels": spec.get("selector", {"": ""})}
    else:
        selector = spec["podSelector" if document["kind"] == "NetworkPolicy" else "selector"]
    return [one for one in every if one.labels and selects(selector, one.labels)]


def service_ports(documents: list[Manifest]) -> Faults:
    """A Service leads to ports of the pods that it selects, and callers' Services to no metrics."""
    for service in of_kind(documents, "Service"):
        names = {port.get("name") for port in service["spec"]["ports"]}
        if names & METRICS_PORTS and not names <= METRICS_PORTS:
            yield f"{called(service)}: offers metrics to callers"
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            for workload in selected(service, workloads(documents)):
                # A number needs no declaration: torch's port is an argument.
                found = target if isinstance(target, int) else _number(target, workload)
                # A headless Service translates no numbers.
                is_headless = service["spec"].get("clusterIP") == "None"
                if found is None or (is_headless and found != port["port"]):
                    yield f"{called(service)}: {target} of {workload} is {found}"
            spoken = port.get("appProtocol")
            if port.get("name") == "grpc" and spoken not in (None, "kubernetes.io/h2c"):
                yield f"{called(service)}: balancers would speak {spoken} to gRPC"


def policy_ports(documents: list[Manifest]) -> Faults:
    """The pods have the ports that a policy allows, and it allows those that a Service offers."""
    services = of_kind(documents, "Service")
    for policy in of_kind(documents, "NetworkPolicy"):
        rules = policy["spec"].get("ingress", [])
        for key, node in nodes(policy["spec"]):
            if node.get("protocol", "TCP") != "TCP" and node["port"] not in DNS_PORTS:
                yield f"{called(policy)}: nothing speaks {node['protocol']} on {node['port']}"
            if key == "namespaceSelector":
                named = {*node.get("matchLabels", {})}
                named |= {one["key"] for one in node.get("matchExpressions", [])}
                if named - {NAMESPACE}:
                    yield f"{called(policy)}: no namespace has the label {named}"
        for rule in rules:
            is_open = {"namespaceSelector": {}} in rule.get("from", [{"namespaceSelector": {}}])
            if is_open and METRICS_PORTS & {port["port"] for port in rule.get("ports", [])}:
                yield f"{called(policy)}: every pod may read metrics"
        for workload in selected(policy, workloads(documents)):
            listed = [port["port"] for rule in rules for port in rule.get("ports", [])]
            allowed = [_number(name, workload) for name in listed]
            if None in allowed:
                yield f"{called(policy)}: {workload} has not all ports of {listed}"
            is_open = not all("ports" in rule for rule in rules)
            for service in [one for one in services if selected(one, [workload])]:
                for port in service["spec"]["ports"]:
                    target = port.get("targetPort", port["port"])
                    if not is_open and _number(target, workload) not in allowed:
                        yield f"{called(policy)}: denies {target} of {called(service)}"


def routes(documents: list[Manifest]) -> Faults:
    """Routes and Ingresses lead to ports of a Service, paths of gRPC to services that exist."""
    services = {one["metadata"]["name"]: one for one in of_kind(documents, "Service")}
    for document in of_kind(documents, "HTTPRoute", "GRPCRoute", "Ingress"):
        for key, node in nodes(document):
            if key in ("backendRefs", "service"):
                port = node["port"] if key == "backendRefs" else node["port"]["name"]
                offered = services.get(node["name"], {"spec": {"ports": []}})["spec"]["ports"]
                if port not in {p[name] for p in offered for name in ("name", "port")}:
                    yield f"{called(document)}: there is no port {port} of {node['name']}"
    for document in of_kind(documents, "HTTPRoute"):
        paths = {
            match["path"]["value"]
            for rule in document["spec"]["rules"]
            for match in rule["matches"]
            if rule["backendRefs"][0]["port"] == 8001
        }
        if paths != GRPC_PATHS:
            yield f"{called(document)}: {sorted(paths)} is not what gRPC serves"


def _number(port: str | int, workload: Workload) -> int | None:
    """The number of a port given by name or number; None if no container declares it."""
    declared = [found for one in workload.containers for found in one.get("ports", [])]
    matching = (p["containerPort"] for p in declared if port in (p["name"], p["containerPort"]))
    return next(matching, None)


def objects(documents: list[Manifest]) -> Faults:
    """ConfigMaps, Secrets, claims and accounts that pods name exist, with the keys.

    The chart's Secrets are made by its users, and have the release's name.
    """
    existing = {(one["kind"], one["metadata"]["name"]): one for one in documents}
    for workload in workloads(documents):
        notes = workload.document["metadata"].get("annotations", {})
        expected = {(kind, name.removeprefix(EXPECTS)) for name, kind in notes.items()}
        if workload.kind == "Deployment":
            name = workload.document["metadata"]["name"]
            expected |= {("Secret", f"{name}-{part}") for part in ("api-keys", "tls")}
        account = workload.pod.get("serviceAccountName")
        account_node = [("serviceAccount", {"name": account})] if account else []
        for field, node in (*nodes(workload.pod), *account_node):
            if field not in REFERRED or node.get("optional"):
                continue
            name = node.get("name", node.get("secretName", node.get("claimName")))
            target = existing.get((REFERRED[field], name))
            if target is None:
                if (REFERRED[field], name) not in expected:
                    yield f"{workload}: there is no {REFERRED[field]} {name}"
            elif "key" in node and node["key"] not in target.get("data", {}):
                yield f"{workload}: {called(target)} has no {node['key']}"


def pods(documents: list[Manifest]) -> Faults:
    """Pods read their Secrets as their user, and no Service's variables; nodes have the keys."""
    for workload in workloads(documents):
        for field, node in nodes(workload.pod):
            if field == "secret" and "secretName" in node:
                has_group = "fsGroup" in workload.pod.get("securityContext", {})
                if not node.get("defaultMode", 0o644) & (0o044 if has_group else 0o004):
                    yield f"{workload}: its user cannot read {node['secretName']}"
            if field == "topologySpreadConstraints" and node["topologyKey"] not in TOPOLOGIES:
                yield f"{workload}: nodes have no {node['topologyKey']}"
        if workload.servers and workload.pod.get("enableServiceLinks", True):
            yield f"{workload}: variables of Services would be settings"


def availability(documents: list[Manifest]) -> Faults:
    """A rollout and a drain of nodes leave half of the replicas, and make progress."""
    least = {
        one["spec"]["scaleTargetRef"]["name"]: one["spec"]["minReplicaCount"]
        for one in of_kind(documents, "ScaledObject")
    }
    for document in of_kind(documents, "Deployment"):
        spec, name = document["spec"], document["metadata"]["name"]
        rollout = spec["strategy"]["rollingUpdate"]
        fewest = least.get(name, spec.get("replicas", 1))
        for count in (fewest, 10, 100):
            removed = _share(rollout["maxUnavailable"], count, is_up=False)
            if not removed and not _share(rollout["maxSurge"], count, is_up=True):
                yield f"{called(document)}: a rollout cannot replace any pod"
            if count > 1 and removed > count / 2:
                yield f"{called(document)}: a rollout removes {removed} of {count}"
        budgets = [
            one
            for one in of_kind(documents, "PodDisruptionBudget")
            if selected(one, workloads([document]))
        ]
        for budget in budgets:
            for count in (fewest, 10, 100):
                evicted = _share(budget["spec"]["maxUnavailable"], count, is_up=True)
                if not evicted or (count > 1 and evicted > count / 2):
                    yield f"{called(budget)}: evicts {evicted} of {count}"
        if not budgets:
            yield f"{called(document)}: has no PodDisruptionBudget"


def _share(amount: int | str, count: int, *, is_up: bool) -> int:
    """A number of pods, or a percentage of them, as Kubernetes rounds it."""
    if isinstance(amount, int):
        return amount
    share = int(amount.removesuffix("%")) * count / 100
    return ceil(share) if is_up else floor(share)


def monitors(documents: list[Manifest]) -> Faults:
    """The label `job` of a server's metrics is its Deployment's name; a proxy's has a suffix."""
    for monitor in of_kind(documents, "ServiceMonitor"):
        spec, found = monitor["spec"], 0
        for service in of_kind(documents, "Service"):
            labels = service["metadata"].get("labels", {})
            if not selects(spec["selector"], labels):
                continue
            found += 1
            job = labels.get(spec["jobLabel"])
            names = {
                one.document["metadata"]["name"] for one in selected(service, workloads(documents))
            }
            if names != {job}:
                yield f"{called(monitor)}: the job is {job}, and the Deployment {names}"
            offered = {port["name"] for port in service["spec"]["ports"]}
            if offered != {one["port"] for one in spec["endpoints"]}:
                yield f"{called(monitor)}: {called(service)} offers {offered}"
        if not found:
            yield f"{called(monitor)}: selects no Service"
        source = "__meta_kubernetes_service_label_" + re.sub(r"\W", "_", spec["jobLabel"])
        own = {"sourceLabels": [source], "targetLabel": "job", "replacement": "${1}-proxy"}
        for endpoint in spec["endpoints"]:
            wanted = [own] if endpoint["port"] == "proxy-metrics" else []
            if endpoint.get("relabelings", []) != wanted:
                yield f"{called(monitor)}: {endpoint['port']} has another job"


def scaling(documents: list[Manifest]) -> Faults:
    """An autoscaler asks for series of its own Deployment that exist, with useful thresholds."""
    for scaled in of_kind(documents, "ScaledObject"):
        spec, name = scaled["spec"], scaled["spec"]["scaleTargetRef"]["name"]
        owned = [one for one in of_kind(documents, "Deployment") if one["metadata"]["name"] == name]
        if not owned or "replicas" in owned[0]["spec"]:
            yield f"{called(scaled)}: no Deployment {name} leaves its replicas to it"
        if not 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]:
            yield f"{called(scaled)}: no number of replicas is between its limits"
        if {one["name"] for one in spec["triggers"]} != THRESHOLDS.keys():
            yield f"{called(scaled)}: its triggers are not {sorted(THRESHOLDS)}"
        for trigger in spec["triggers"]:
            text, given = f"{called(scaled)}: {trigger['name']}", trigger["metadata"]
            low, high = THRESHOLDS.get(trigger["name"], (0.0, 0.0))
            if not low <= float(given["threshold"]) <= high:
                yield f"{text}: {given['threshold']} is not from {low} to {high}"
            if trigger["metricType"] != "Value" or given["ignoreNullValues"] != "false":
                yield f"{text}: is divided by replicas, or missing data are 0"
            series, query = metric_names(given["query"]), given["query"]
            if unknown := series - known_series([]):
                yield f"{text}: nothing exports {sorted(unknown)}"
            if not re.match(
                rf'group by \(namespace, job\) \(up{{namespace="[^"]+",job="{name}"}}\)', query
            ):
                yield f"{text}: asks for another Deployment than {name}"
            stages = re.findall(r'_seconds_(sum|count)\{stage="(\w+)"\}', query)
            wanted = [("sum", "queue"), ("count", "queue")] * (trigger["name"] == "queue-wait")
            if stages != wanted:
                yield f"{text}: {stages} is not the wait in the queue"


def servers(documents: list[Manifest]) -> Faults:
    """The server accepts its settings, and they fit its container and its proxy."""
    for workload in workloads(documents):
        for container in workload.servers:
            environment = variables(container, documents)
            try:
                chosen = settings_of(environment, container.get("args", []))
            except (ValueError, SystemExit) as error:
                yield f"{workload}: the server refuses its settings: {error}"
                continue
            found = [*probes(container, {"startup": READY, "readiness": READY, "liveness": LIVE})]
            found += memory(container["resources"]["limits"]["memory"], chosen)
            found += _shutdown(workload, container, chosen)
            for front in workload.pod.get("initContainers", []):
                if front["name"] == "front":
                    found += behind(chosen, environment)
                    found += _front(front, container, environment)
            yield from (f"{workload}: {fault}" for fault in found)


def settings_of(environment: dict[str, str], arguments: list[str] | None = None) -> Settings:
    """The server's settings with these variables only."""
    with patch.dict(os.environ, environment, clear=True):
        return load_settings(arguments or [], environment)


def probes(container: Manifest, meanings: dict[str, str], port: str = "metrics") -> Faults:
    """Each probe asks for the route that has its meaning, on a port without callers, in time."""
    for probe in ("startup", "readiness", "liveness"):
        trials = container.get(f"{probe}Probe", {})
        if not trials and probe not in meanings:
            continue
        asked = trials.get("httpGet", {})
        if asked != {"path": meanings.get(probe), "port": port}:
            yield f"{probe} of {container['name']}: {asked} is not what it has to ask"
            continue
        acts_s = trials.get("periodSeconds", 10) * trials.get("failureThreshold", 3)
        if acts_s not in ACTS_S[probe] or trials.get("timeoutSeconds", 1) < 3:
            yield f"{probe} of {container['name']}: acts after {acts_s} s"


def memory(amount: str, chosen: Settings) -> Faults:
    """The most that callers can take fits into the limit, beside the processes."""
    needed = max_caller_bytes(chosen) + chosen.workers * RESIDENT_BYTES
    if _bytes(amount) < needed:
        yield f"callers can make the server take {needed} bytes, and its limit is {amount}"


def front_memory(amount: str, environment: dict[str, str]) -> Faults:
    """The connections that the proxy accepts fit into its limit."""
    count = int(environment.get("PROXY_CONNECTIONS", proxy_default("CONNECTIONS")))
    if _bytes(amount) < count * CONNECTION_BYTES:
        yield f"{count} connections take {count * CONNECTION_BYTES} bytes; the limit is {amount}"


def _bytes(amount: str) -> int:
    unit = amount.lower().removesuffix("i")[-1]
    return int(amount.rstrip("KkMmGgi")) << {"k": 10, "m": 20, "g": 30}[unit]


def proxy_default(name: str) -> str:
    """The default of a variable of the proxy."""
    return str(re.findall(rf"\$\{{PROXY_{name}:-([^}}]+)\}}", PROXY)[0])


def stop_s(chosen: Settings) -> float:
    """The longest time from SIGTERM to the server's end."""
    graces = WRITE_GRACE_S + LOG_GRACE_S + TRACE_GRACE_S
    return chosen.drain_delay_s + chosen.drain_timeout_s + graces


def _shutdown(workload: Workload, container: Manifest, chosen: Settings) -> Faults:
    """Balancers have time to notice a stop, and the drain fits into the grace period."""
    before_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed_s = before_s + stop_s(chosen)
    grace_s = workload.pod.get("terminationGracePeriodSeconds", 30)
    if not before_s + chosen.drain_delay_s or grace_s <= needed_s:
        yield f"{before_s} s of notice, killed after {grace_s} of {needed_s} s"


def behind(chosen: Settings, environment: dict[str, str]) -> Faults:
    """A server behind the proxy takes callers from there only, and metrics from everywhere."""
    if chosen.address[0] != "127.0.0.1" or chosen.metrics_host != "0.0.0.0":
        yield f"{chosen.address[0]} takes callers, and {chosen.metrics_host} takes probes"
    if [str(one) for one in chosen.trusted_proxies] != ["127.0.0.1/32"]:
        yield f"the server trusts {chosen.trusted_proxies}, and its proxy is 127.0.0.1"
    for protocol, port in (("REST", chosen.http_port), ("GRPC", chosen.grpc_port)):
        asked = environment.get(f"PROXY_{protocol}_SERVER", proxy_default(f"{protocol}_SERVER"))
        if asked != f"127.0.0.1:{port}":
            yield f"the proxy asks {asked} for {protocol}, and the server has port {port}"
    if (
        int(environment.get("PROXY_TIMEOUT_S", proxy_default("TIMEOUT_S")))
        <= chosen.request_timeout_s
    ):
        yield "the proxy ends requests before the server does"
    for name in environment:
        if name.startswith("PROXY_") and name not in PROXY:
            yield f"the proxy has no variable {name}"


def _front(front: Manifest, server: Manifest, environment: dict[str, str]) -> Faults:
    """The proxy runs beside the server, has its ports, and leaves callers before it."""
    yield from probes(front, {"readiness": READY, "liveness": "/metrics"}, "proxy-metrics")
    yield from front_memory(front["resources"]["limits"]["memory"], environment)
    if front.get("restartPolicy") != "Always":
        yield "the front would have to end before the server starts"
    for port in front["ports"]:
        name = {"http": "REST", "grpc": "GRPC", "proxy-metrics": "METRICS"}[port["name"]]
        if proxy_default(name) != str(port["containerPort"]):
            yield f"the proxy listens on {proxy_default(name)} for {port['name']}"
    command = front["lifecycle"]["preStop"]["exec"]["command"][-1]
    told = re.fullmatch(r"sleep (\d+); kill -QUIT 1", command)
    if not told or not 0 < int(told[1]) < server["lifecycle"]["preStop"]["sleep"]["seconds"]:
        yield f"{command}: the front must end gracefully, after balancers and before the server"


def secrets(documents: list[Manifest]) -> Faults:
    """No variable holds a secret."""
    for document in documents:
        plain = [*document.get("data", {}).items()] if document["kind"] == "ConfigMap" else []
        for _, node in nodes(document):
            plain += [(node["name"], node["value"])] if node.keys() == {"name", "value"} else []
        for name, value in plain:
            if SECRET_NAME.search(name) and not value.startswith("/"):
                yield f"{called(document)}: {name} is a secret in plain text"
