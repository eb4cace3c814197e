"""Faults of manifests that no schema knows: names and numbers that disagree, promises not kept.

Every check takes documents as `kubectl kustomize` prints them and yields one sentence per fault.
"""

import base64
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path, PurePosixPath
from unittest.mock import patch

from service.monitoring.metrics_server import LIVE, READY
from service.server import LOG_GRACE_S, TRACE_GRACE_S, WRITE_GRACE_S
from service.settings import PREFIX, Settings, load_settings
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
from tipserve_cli.commands.program import WRONG_USAGE

Faults = Iterator[str]
ROOT = Path(__file__).resolve().parents[2]


def faults(documents: list[Manifest]) -> list[str]:
    """All faults of documents that are applied together."""
    checks = (*SELECTORS, *NUMBERS, *SERVER, *CLUSTER, *IMAGES)
    return [fault for check in checks for fault in check(documents)]


# Selectors and targets.

# A Deployment and its canaries are parts of one thing.
PART = "app.kubernetes.io/part-of"


def own_selectors(documents: list[Manifest]) -> Faults:
    """A workload's selector and its spread constraints select its own pods, and no others."""
    for workload in workloads(documents):
        spec = workload.document["spec"]
        if "selector" in spec:
            chosen = [one for one in workloads(documents) if selects(spec["selector"], one.labels)]
            if chosen != [workload]:
                yield f"{workload}: its selector selects {[str(one) for one in chosen]}"
        for constraint in workload.pod.get("topologySpreadConstraints", []):
            if not selects(constraint["labelSelector"], workload.labels):
                yield f"{workload}: spread over {constraint['topologyKey']} counts other pods"


def others_selectors(documents: list[Manifest]) -> Faults:
    """Services, budgets and policies select pods, and each pod has a policy."""
    pods, protected = workloads(documents), set[str]()
    for document in of_kind(documents, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        chosen = {str(one) for one in selected(document, pods)}
        if document["kind"] == "NetworkPolicy":
            protected |= chosen
        elif len(chosen) > 1 and PART not in document["spec"]["selector"]:
            yield f"{called(document)}: selects the pods of several: {sorted(chosen)}"
        if not chosen:
            yield f"{called(document)}: selects no pod of these documents"
    yield from (f"{one}: no NetworkPolicy selects it" for one in pods if str(one) not in protected)


def selected(document: Manifest, pods: list[Workload]) -> list[Workload]:
    """The workloads whose pods a Service, a budget or a policy selects."""
    spec = document["spec"]
    if document["kind"] == "Service":
        # Without a selector it selects nothing.
        selector = {"matchLabels": spec.get("selector", {"": ""})}
    else:
        selector = spec["podSelector" if document["kind"] == "NetworkPolicy" else "selector"]
    return [one for one in pods if one.labels and selects(selector, one.labels)]


def monitored(documents: list[Manifest]) -> Faults:
    """Monitors select one Service that has the job's label, or pods, with the named ports."""
    for monitor in of_kind(documents, "ServiceMonitor", "PodMonitor"):
        spec, pods = monitor["spec"], workloads(documents)
        if monitor["kind"] == "ServiceMonitor":
            services = of_kind(documents, "Service")
            services = [s for s in services if selects(spec["selector"], s["metadata"]["labels"])]
            if len(services) != 1:
                yield f"{called(monitor)}: selects {len(services)} Services"
            # Rules and autoscalers know a Deployment by its name, which is the job.
            jobs = {service["metadata"]["labels"].get(spec["jobLabel"]) for service in services}
            pods = [pod for service in services for pod in selected(service, pods)]
            if jobs != {pod.document["metadata"]["name"] for pod in pods}:
                yield f"{called(monitor)}: the job of {list(map(str, pods))} is {jobs}"
            offered = [port for service in services for port in service["spec"]["ports"]]
        else:
            pods = [pod for pod in pods if selects(spec["selector"], pod.labels)]
            offered = [p for pod in pods for c in pod.containers for p in c.get("ports", [])]
        for point in spec.get("endpoints", spec.get("podMetricsEndpoints")):
            if point["port"] not in {port["name"] for port in offered}:
                yield f"{called(monitor)}: there is no port {point['port']}"


def autoscaled(documents: list[Manifest]) -> Faults:
    """An autoscaler has a target of its own, which does not set `replicas`."""
    targets = Counter[str]()
    by_name = {called(document): document["spec"] for document in of_kind(documents, "Deployment")}
    for scaler in of_kind(documents, "HorizontalPodAutoscaler", "ScaledObject"):
        spec = scaler["spec"]
        name = f"{spec['scaleTargetRef']['kind']}/{spec['scaleTargetRef']['name']}"
        targets[name] += 1
        if targets[name] > 1 or "replicas" in by_name.get(name, ["replicas"]):
            yield f"{called(scaler)}: {name} is missing, has two autoscalers, or `replicas`"
        low = spec.get("minReplicas", spec.get("minReplicaCount", 0))
        if low > spec.get("maxReplicas", spec.get("maxReplicaCount", 100)):
            yield f"{called(scaler)}: the minimum of replicas exceeds the maximum"


def budgeted(documents: list[Manifest]) -> Faults:
    """A budget names how many may be missing, and never none: a node could not be drained."""
    for budget in of_kind(documents, "PodDisruptionBudget"):
        if str(budget["spec"].get("maxUnavailable", 0)) in {"0", "0%"}:
            yield f"{called(budget)}: allows no eviction"


SELECTORS = (own_selectors, others_selectors, monitored, autoscaled, budgeted)

# Quantities and ports.

QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|[kMGTPE]|[KMGTPE]i)?")
UNITS = {
    **{unit: Decimal(1000) ** n for n, unit in enumerate(("m", None, *"kMGTPE"), start=-1)},
    **{f"{unit}i": Decimal(1024) ** n for n, unit in enumerate("KMGTPE", start=1)},
}


def number(quantity: str | int) -> Decimal:
    """The value of a quantity such as `250m` or `2Gi`; 0 if it is none."""
    match = QUANTITY.fullmatch(str(quantity))
    return Decimal(match[1]) * UNITS[match[2]] if match else Decimal(0)


def quantities(documents: list[Manifest]) -> Faults:
    """Quantities are positive, and whole for bytes and devices: the API server takes fractions."""
    for document in documents:
        for key, node in nodes(document):
            for name, quantity in node.items():
                if key in ("requests", "limits") or name == "sizeLimit" or key == "target":
                    fractions = name in ("cpu", "value")
                    amount = Decimal(1) if name == "type" else number(quantity)
                    if not amount or (amount % 1 and not fractions):
                        yield f"{called(document)}: {quantity} is no quantity of {name}"


def resources(documents: list[Manifest]) -> Faults:
    """No limit is below a request, and none is of CPUs, which would throttle."""
    for document in documents:
        for _, node in nodes(document):
            limits, requests = node.get("limits", {}), node.get("requests", {})
            if "cpu" in limits:
                yield f"{called(document)} has a limit of CPUs"
            for name in limits.keys() & requests.keys():
                if number(requests[name]) > number(limits[name]):
                    yield f"{called(document)} requests more {name} than its limit"


def service_ports(documents: list[Manifest]) -> Faults:
    """A Service leads to ports of the pods that it selects."""
    for service in of_kind(documents, "Service"):
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            for workload in selected(service, workloads(documents)):
                # A number needs no declaration: torch's port is an argument.
                found = target if isinstance(target, int) else _number(target, workload)
                # A headless Service translates no numbers.
                is_headless = service["spec"].get("clusterIP") == "None"
                if found is None or (is_headless and found != port["port"]):
                    yield f"{called(service)}: {target} of {workload} is {found}"


def routes(documents: list[Manifest]) -> Faults:
    """Routes and Ingresses lead to ports of a Service."""
    services = {one["metadata"]["name"]: one for one in of_kind(documents, "Service")}
    for document in of_kind(documents, "HTTPRoute", "GRPCRoute", "Ingress"):
        for key, node in nodes(document):
            if key in ("backendRefs", "service"):
                port = node["port"] if key == "backendRefs" else node["port"]["name"]
                offered = services.get(node["name"], {"spec": {"ports": []}})["spec"]["ports"]
                if port not in {p[name] for p in offered for name in ("name", "port")}:
                    yield f"{called(document)}: there is no port {port} of {node['name']}"


def policy_ports(documents: list[Manifest]) -> Faults:
    """The pods have the ports that a policy allows, and it allows those that a Service offers."""
    services = of_kind(documents, "Service")
    for policy in of_kind(documents, "NetworkPolicy"):
        rules = policy["spec"].get("ingress", [])
        for workload in selected(policy, workloads(documents)):
            named = [port["port"] for rule in rules for port in rule.get("ports", [])]
            allowed = [_number(name, workload) for name in named]
            if None in allowed:
                yield f"{called(policy)}: {workload} has not all ports of {named}"
            for service in [one for one in services if selected(one, [workload])]:
                for port in service["spec"]["ports"]:
                    target = port.get("targetPort", port["port"])
                    is_open = not all("ports" in rule for rule in rules)
                    if not is_open and _number(target, workload) not in allowed:
                        yield f"{called(policy)}: denies {target} of {called(service)}"


def _number(port: str | int, workload: Workload) -> int | None:
    """The number of a port given by name or number; None if no container declares it."""
    declared = [found for one in workload.containers for found in one.get("ports", [])]
    matching = (p["containerPort"] for p in declared if port in (p["name"], p["containerPort"]))
    return next(matching, None)


NUMBERS = (quantities, resources, service_ports, routes, policy_ports)

# The server in a pod: references, variables against settings, probes against routes, mounts.

# Annotation `expects/NAME: KIND` for an object that the cluster must already have.
EXPECTS = "expects/"
# What a pod refers to, by the field that holds the reference; a Secret is named so in several ways.
REFERRED = {"persistentVolumeClaim": "PersistentVolumeClaim", "serviceAccount": "ServiceAccount"}
REFERRED |= dict.fromkeys(("secret", "secretRef", "secretKeyRef"), "Secret")
REFERRED |= dict.fromkeys(("configMap", "configMapRef", "configMapKeyRef"), "ConfigMap")
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
WRITTEN = ("cache", "ports_file")
READ = ("api_keys_file", "tls_cert", "tls_key", "tls_client_ca", "model_repository")


def objects(documents: list[Manifest]) -> Faults:
    """ConfigMaps, Secrets, claims and accounts that pods name exist, with the keys."""
    existing = {(one["kind"], one["metadata"]["name"]): one for one in documents}
    for workload in workloads(documents):
        notes = workload.document["metadata"].get("annotations", {})
        expected = {(kind, name.removeprefix(EXPECTS)) for name, kind in notes.items()}
        account = workload.pod.get("serviceAccountName")
        account_node = [("serviceAccount", {"name": account})] if account else []
        for field, node in (*nodes(workload.pod), *account_node):
            if field in REFERRED:
                name = node.get("name", node.get("secretName", node.get("claimName")))
                target = existing.get((REFERRED[field], name))
                data = {**(target or {}).get("data", {}), **(target or {}).get("stringData", {})}
                keys = {one["key"] for one in (node, *node.get("items", [])) if "key" in one}
                if target is not None and not node.get("optional"):
                    for key in keys - data.keys():
                        yield f"{workload}: {called(target)} has no {key}"
                elif not node.get("optional") and (REFERRED[field], name) not in expected:
                    yield f"{workload}: there is no {REFERRED[field]} {name}"


def mounts(documents: list[Manifest]) -> Faults:
    """Mounts have a volume, volumes a mount, and no two mounts of a container one path."""
    for workload in workloads(documents):
        unused = volumes = {volume["name"] for volume in workload.pod.get("volumes", [])}
        for container in workload.containers:
            mounted = container.get("volumeMounts", [])
            names, places = ({one[key] for one in mounted} for key in ("name", "mountPath"))
            unused = unused - names
            if names - volumes or len(places) < len(mounted):
                yield f"{workload}: {container['name']} mounts no volume, or two at one path"
        yield from (f"{workload}: no container mounts {name}" for name in sorted(unused))


def settings(documents: list[Manifest]) -> Faults:
    """The server accepts its variables, and none of them is a secret."""
    for workload, container in _servers(documents):
        if isinstance(chosen := _settings(container, documents), str):
            yield f"{workload}: the server refuses its settings: {chosen}"
        if f"{PREFIX}API_KEYS" in variables(container, documents):
            yield f"{workload}: API keys belong into a file, not into a variable"


def ports(documents: list[Manifest]) -> Faults:
    """The container declares exactly the ports on which the server listens, to all."""
    for workload, container, chosen in _accepted(documents):
        listening = [(n, getattr(chosen, f"{n}_port")) for n in ("http", "grpc", "metrics")]
        if chosen.grpc_host in LOOPBACK:
            del listening[1]  # a sidecar has the port of that name
        declared = [(port["name"], port["containerPort"]) for port in container["ports"]]
        if declared != listening or chosen.host in LOOPBACK:
            yield f"{workload}: its ports are {declared}, the server's {listening}, {chosen.host}"


def probes(documents: list[Manifest]) -> Faults:
    """Each probe asks for the route that has its meaning, on the port without callers."""
    for workload, container, chosen in _accepted(documents):
        numbers = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe, meaning in {"startup": READY, "readiness": READY, "liveness": LIVE}.items():
            asked = container.get(f"{probe}Probe", {}).get("httpGet", {})
            port, path = numbers.get(asked.get("port"), 0), asked.get("path")
            if path != meaning or port != chosen.metrics_port or "scheme" in asked:
                yield f"{workload}: {probe}: {path} on {port} is not what it has to ask"


def startup(documents: list[Manifest]) -> Faults:
    """A pod has time to start, and a rollout is not reported as stuck while it may still start."""
    for workload, container in _servers(documents):
        deadline_s = workload.document["spec"].get("progressDeadlineSeconds", 600)
        probe = container.get("startupProbe", {})
        limit_s = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
        if not LEAST_STARTUP_S <= limit_s < deadline_s:
            yield f"{workload}: may start for {limit_s} s, but must be done in {deadline_s}"


def shutdown(documents: list[Manifest]) -> Faults:
    """Balancers have time to notice a stop, and the drain fits into the grace period."""
    for workload, container, chosen in _accepted(documents):
        before_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        notice_s = before_s.get("seconds", 0) + chosen.drain_delay_s
        needed_s = notice_s + chosen.drain_timeout_s + WRITE_GRACE_S + LOG_GRACE_S + TRACE_GRACE_S
        grace_s = workload.pod.get("terminationGracePeriodSeconds", 30)
        if not notice_s or grace_s <= needed_s:
            yield f"{workload}: {notice_s} s of notice, needs {needed_s} s, killed after {grace_s}"


def paths(documents: list[Manifest]) -> Faults:
    """Paths that the server or an init container reads are mounted, others also writable."""
    for workload, container, chosen in _accepted(documents):
        written = [getattr(chosen, name) for name in WRITTEN]
        read = [getattr(chosen, name) for name in READ]
        read += [source.partition("=")[2] or source for source in chosen.model]
        yield from _unmounted(workload, container, read=read, written=["/tmp", *written])
    for workload in workloads(documents):
        for container in workload.pod.get("initContainers", []):
            values = variables(container, documents)
            written = [values.get(name) for name in ("TIPSERVE_CACHE", "HF_HOME")]
            read = [values.get("TIPSERVE_MODEL")]
            yield from _unmounted(workload, container, read=read, written=written)


def files(documents: list[Manifest]) -> Faults:
    """A file that the server reads from a Secret is one of its keys."""
    secrets = {one["metadata"]["name"]: one for one in of_kind(documents, "Secret")}
    for workload, container, chosen in _accepted(documents):
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
        places = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        for path in filter(None, (getattr(chosen, name) for name in READ)):
            volume = volumes.get(places.get(str(path.parent), ""), {})
            secret = secrets.get(volume.get("secret", {}).get("secretName"))
            if secret is not None and path.name not in secret.get("data", {}):
                yield f"{workload}: {called(secret)} has no {path.name}"


def _unmounted(
    workload: Workload, container: Manifest, *, read: list[object], written: list[object]
) -> Faults:
    volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
    places = {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}
    for path in filter(lambda path: str(path).startswith("/"), [*read, *written]):
        whole = PurePosixPath(str(path))
        above = [places[place] for place in map(str, (whole, *whole.parents)) if place in places]
        volume = volumes.get(above[0]["name"], {}) if above else {}
        is_writable = volume.keys() & {"emptyDir", "persistentVolumeClaim"}
        if not above or (path in written and (above[0].get("readOnly") or not is_writable)):
            yield f"{workload}: {container['name']}: cannot read, or not write, {path}"


def _servers(documents: list[Manifest]) -> Iterator[tuple[Workload, Manifest]]:
    return ((one, container) for one in workloads(documents) for container in one.servers)


def _accepted(documents: list[Manifest]) -> Iterator[tuple[Workload, Manifest, Settings]]:
    """Servers with their settings; `settings` reports those that are refused."""
    for workload, container in _servers(documents):
        if isinstance(chosen := _settings(container, documents), Settings):
            yield workload, container, chosen


def _settings(container: Manifest, documents: list[Manifest]) -> Settings | str:
    environment = variables(container, documents)
    try:
        with patch.dict(os.environ, environment, clear=True):
            return load_settings(container.get("args", []), environment)
    except (ValueError, SystemExit) as error:
        return str(error)


SERVER = (objects, mounts, settings, ports, probes, startup, shutdown, paths, files)

# What only a node, another namespace, an operator or the API server knows.

# By the field that holds them, or by the field around it and the one that holds them.
KNOWN = {
    "requests": {"cpu", "memory", "storage", "nvidia.com/gpu"},
    "limits": {"memory", "nvidia.com/gpu", "nvidia.com/mig-2g.20gb"},
    "topologyKey": {"topology.kubernetes.io/zone", "kubernetes.io/hostname"},
    "tolerations.key": {"nvidia.com/gpu"},
    "nodeSelector": {"nvidia.com/gpu.present", "nvidia.com/gpu.product"},
    "kubernetes.io/metadata.name": {"kube-system", "openshift-dns", "monitoring", "observability"},
    "endpoints.path": {"/metrics"},
    "prometheus.kserve.io/path": {"/metrics"},
    "prometheus.kserve.io/port": {str(Settings.model_fields["metrics_port"].default)},
    "metricType": {"Value"},
}
CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
CRON_PART = re.compile(r"(?:\*|(\d+)(?:-(\d+))?)(?:/[1-9]\d*)?")
# Measured: 18 s for B/14; another node may be three times as slow.
LEAST_STARTUP_S = 3 * 18
WEEK_S = 7 * 86400


def well_known(documents: list[Manifest]) -> Faults:
    """Names that are not ours are those that the cluster has."""
    for document in documents:
        for key, node in nodes(document):
            asked = [(field, value) for field, value in node.items()]
            # A toleration without a key is of every taint.
            asked += [(f"{key}.{field}", value) for field, value in {"key": "", **node}.items()]
            asked += [(key, name) for name in node if key in ("requests", "limits", "nodeSelector")]
            asked += [(node.get("key", ""), value) for value in node.get("values", [])]
            for field, name in asked:
                if isinstance(name, str) and name not in KNOWN.get(field, {name}):
                    yield f"{called(document)}: {field}: {name} is not known"


def refused(documents: list[Manifest]) -> Faults:
    """What the API server, KEDA or a claim's volume would refuse."""
    for workload in workloads(documents):
        spec = workload.document["spec"]
        rolling = spec.get("strategy", {}).get("rollingUpdate", {})
        if rolling and not any(int(str(n).rstrip("%")) for n in rolling.values()):
            yield f"{workload}: neither maxSurge nor maxUnavailable lets it roll out"
        if workload.kind not in ("Job", "CronJob") or spec.get("parallelism", 1) > 1:
            for claim in of_kind(documents, "PersistentVolumeClaim"):
                if claim["spec"]["accessModes"] != ["ReadWriteMany"]:
                    yield f"{called(claim)}: {workload} has several pods"
        parts = str(spec.get("schedule", "* * * * *")).split()
        for part, (low, high) in zip(parts, CRON_RANGES, strict=True):
            found = [CRON_PART.fullmatch(one) for one in part.split(",")]
            numbers = [int(n) for match in found if match for n in match.groups() if n]
            if not all(found) or not all(low <= n <= high for n in numbers):
                yield f"{workload}: {part} in its schedule is not within {low} to {high}"
    for scaled in of_kind(documents, "ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            if not trigger["metadata"]["threshold"].replace(".", "", 1).isdigit():
                yield f"{called(scaled)}: KEDA takes a number as threshold, no quantity"


def retried(documents: list[Manifest]) -> Faults:
    """Jobs retry after evictions and not after mistakes, one at a time, and end within a week."""
    for workload in workloads(documents):
        spec = workload.document["spec"]
        job = spec.get("jobTemplate", {}).get("spec", spec)
        rules = job.get("podFailurePolicy", {}).get("rules", [])
        for rule in rules:
            exits = rule.get("onExitCodes", {"values": [WRONG_USAGE]})
            if (rule["action"] == "Ignore") != ("onPodConditions" in rule):
                yield f"{workload}: only evictions do not count as failures"
            if WRONG_USAGE not in exits["values"]:
                yield f"{workload}: a wrong command line is retried"
            if exits.get("containerName") not in {None, *(c["name"] for c in workload.containers)}:
                yield f"{workload}: there is no container {exits['containerName']}"
        # torchrun ends with 1, whatever its process ended with.
        has_status = any(c.get("command") != ["torchrun"] for c in workload.containers)
        if rules and (len(rules) != 1 + has_status or workload.pod["restartPolicy"] != "Never"):
            yield f"{workload}: a rule each for evictions and mistakes, and pods that never restart"
        if workload.kind == "CronJob" and (
            spec.get("concurrencyPolicy") != "Forbid"
            or job.get("activeDeadlineSeconds", WEEK_S) >= WEEK_S
        ):
            yield f"{workload}: a run that hangs meets the next one, or keeps it from starting"


def balanced(documents: list[Manifest]) -> Faults:
    """Callers' Services have only pods that are ready, and a headless one is headless."""
    for service in of_kind(documents, "Service"):
        spec = service["spec"]
        is_for_callers = bool({"http", "grpc"} & {port["name"] for port in spec["ports"]})
        if is_for_callers and spec.get("publishNotReadyAddresses"):
            yield f"{called(service)}: callers get pods that are not ready"
        is_headless = is_for_callers and spec.get("clusterIP") == "None"
        if service["metadata"]["name"].endswith("-headless") != is_headless:
            yield f"{called(service)}: clusterIP is {spec.get('clusterIP')}"


def queries(documents: list[Manifest]) -> Faults:
    """Queries are of the autoscaler's own Deployment, and read series that exist."""
    groups = [g for one in of_kind(documents, "PrometheusRule") for g in one["spec"]["groups"]]
    asked = [rule["expr"] for group in groups for rule in group["rules"]]
    for scaled in of_kind(documents, "ScaledObject"):
        target = scaled["spec"]["scaleTargetRef"]["name"]
        own = f'{{namespace="{scaled["metadata"].get("namespace", "default")}",job="{target}"}}'
        for query in (trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]):
            asked.append(query)
            if not query.startswith(f"group by (namespace, job) (up{own}) *"):
                yield f"{called(scaled)}: {query} is not only of {own}"
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        for metric in (one["external"]["metric"] for one in scaler["spec"]["metrics"]):
            target = scaler["spec"]["scaleTargetRef"]["name"]
            if metric["selector"]["matchLabels"] != {"job": target}:
                yield f"{called(scaler)}: {metric['name']} is not only of {target}"
    known = known_series(groups) if asked else frozenset()
    for query in asked:
        yield from (f"{query}: there is no series {n}" for n in metric_names(query) - known)


CLUSTER = (well_known, refused, retried, balanced, queries)

# Images, users and secrets.

# Suffixes of our images; deploy/README.md says how each is built.
# That of the sidecar `front`.
OTHERS = frozenset({"haproxy:3.0.11-alpine"})
VARIANTS = ("", "-gpu", "-convert", "-train", "-bulk", "-ray", "-stores")
VERSION_LABEL = "app.kubernetes.io/version"
PLAIN = {"name", "value"}
SECRET_NAME = re.compile(r"(KEY|KEYS|TOKEN|PASSWORD|SECRET|CREDENTIALS)$", re.IGNORECASE)


def images(documents: list[Manifest]) -> Faults:
    """Images and labels have the project's version."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = tomllib.loads(text)["project"]["version"]
    known = {f"tipserve:{version}{variant}" for variant in VARIANTS} | OTHERS
    for workload in workloads(documents):
        for container in workload.containers:
            if str(container.get("image")).rpartition("/")[2] not in known:
                yield f"{workload}: {container['name']} has the image {container.get('image')}"
    for document in documents:
        if document["metadata"].get("labels", {}).get(VERSION_LABEL, version) != version:
            yield f"{called(document)}: {VERSION_LABEL} is not {version}"


def users(documents: list[Manifest]) -> Faults:
    """Containers run as the user of their image, without Services' variables and node's paths."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    user, group = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)[-1]
    wanted = {"runAsUser": int(user), "runAsGroup": int(group), "runAsNonRoot": True}
    for workload in workloads(documents):
        for container in workload.containers:
            common = workload.pod.get("securityContext", {})
            context = {**common, **container.get("securityContext", {})}
            if not wanted.items() <= context.items():
                yield f"{workload}: {container['name']}: not {wanted}"
        # A TrainJob has no such field.
        if workload.kind != "TrainJob" and workload.pod.get("enableServiceLinks") is not False:
            yield f"{workload}: enableServiceLinks is not false"
        if any("hostPath" in volume for volume in workload.pod.get("volumes", [])):
            yield f"{workload}: mounts a path of its node"


def secrets(documents: list[Manifest]) -> Faults:
    """No secret is written down: Secrets hold only comments, variables only paths."""
    for document in documents:
        data = document.get("data", {})
        if document["kind"] == "Secret":
            text = "\n".join(base64.b64decode(value).decode() for value in data.values())
            if "stringData" in document or re.search(r"^(?!#)[ \t]*\S", text, re.MULTILINE):
                yield f"{called(document)}: holds a value"
        plain = [*data.items()] if document["kind"] == "ConfigMap" else []
        plain += [(v["name"], v["value"]) for _, v in nodes(document) if v.keys() == PLAIN]
        for name, value in plain:
            if SECRET_NAME.search(name) and not value.startswith("/"):
                yield f"{called(document)}: {name} is a secret in plain text"


IMAGES = (images, users, secrets)
