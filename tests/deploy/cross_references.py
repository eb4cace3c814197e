"""Names and numbers of manifests that must agree; schemas know none of it.

Every check is a pure function over documents as `kubectl kustomize` writes them, and returns one
sentence for each fault, which begins with the object.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path, PurePosixPath
from unittest.mock import create_autospec, patch

from fastapi.routing import APIRoute

from service.data_plane import DataPlane
from service.monitoring.metrics import READINGS, Metrics
from service.monitoring.metrics_server import LIVE, READY
from service.rest.routes import build_router
from service.server import LOG_GRACE_S, TRACE_GRACE_S, WRITE_GRACE_S
from service.settings import PREFIX, Settings, load_settings
from tests.deploy.workloads import (
    Manifest,
    Workload,
    called,
    of_kind,
    pods_within,
    selects,
    workloads,
)

# Selectors and targets: what means pods, a Service or a Deployment finds them, and no others.


def own_selectors(documents: list[Manifest]) -> list[str]:
    """A workload's selector, and where its pods are to be apart, mean its own pods."""
    found = []
    for workload in workloads(documents):
        spec = workload.document.get("spec", {})
        if "selector" in spec and not selects(spec["selector"], workload.labels):
            found.append(f"{workload}: its selector does not fit its own pods")
        for constraint in workload.pod.get("topologySpreadConstraints", []):
            if not selects(constraint["labelSelector"], workload.labels):
                key = constraint["topologyKey"]
                found.append(f"{workload}: spread over {key} counts other pods than its own")
    return found


def others_selectors(documents: list[Manifest]) -> list[str]:
    """Services, budgets and policies find the pods of one workload."""
    pods = [*workloads(documents), *made_by_operators(documents)]
    found = []
    for document in of_kind(documents, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        chosen = selected(document, pods)
        if not chosen:
            found.append(f"{called(document)}: selects no pod of these documents")
        elif document["kind"] == "Service" and len(chosen) > 1:
            names = ", ".join(map(str, chosen))
            found.append(f"{called(document)}: selects the pods of several: {names}")
    return found


def made_by_operators(documents: list[Manifest]) -> list[Workload]:
    """The pods that operators would make, with the labels that they would have."""
    made = pods_within(documents)
    labelled = [(one, one["metadata"].get("labels", {})) for one in of_kind(made, "Pod")]
    return [*workloads(made), *(Workload(one, one["spec"], labels) for one, labels in labelled)]


def selected(document: Manifest, pods: list[Workload]) -> list[Workload]:
    """The workloads whose pods a Service, a budget or a policy means."""
    spec = document["spec"]
    if document["kind"] == "Service":
        selector = {"matchLabels": spec.get("selector", {})}
    else:
        selector = spec["podSelector" if document["kind"] == "NetworkPolicy" else "selector"]
    return [one for one in pods if one.labels and selects(selector, one.labels)]


def monitored(documents: list[Manifest]) -> list[str]:
    """Monitors find a Service, or pods, with the port that they name."""
    found = []
    services = of_kind(documents, "Service")
    for monitor in of_kind(documents, "ServiceMonitor"):
        spec = monitor["spec"]
        labelled = [(one, one["metadata"].get("labels", {})) for one in services]
        chosen = [one for one, labels in labelled if selects(spec["selector"], labels)]
        if not chosen:
            found.append(f"{called(monitor)}: selects no Service of these documents")
        for service in chosen:
            names = {port["name"] for port in service["spec"]["ports"]}
            missing = {point["port"] for point in spec["endpoints"]} - names
            found += [f"{called(monitor)}: {called(service)} has no port {n}" for n in missing]
            label = spec.get("jobLabel")
            if label and label not in service["metadata"]["labels"]:
                found.append(f"{called(monitor)}: {called(service)} has no label {label}")
    for monitor in of_kind(documents, "PodMonitor"):
        if not any(
            selects(monitor["spec"]["selector"], one.labels) for one in workloads(documents)
        ):
            found.append(f"{called(monitor)}: selects no pod of these documents")
    return found


def autoscaled(documents: list[Manifest]) -> list[str]:
    """Autoscalers have a target, one at most for each, which leaves its replicas to them."""
    found, targets = [], Counter[str]()
    there = {called(document): document for document in documents}
    for scaler in of_kind(documents, "HorizontalPodAutoscaler", "ScaledObject"):
        reference = scaler["spec"]["scaleTargetRef"]
        name = f"{reference.get('kind', 'Deployment')}/{reference['name']}"
        targets[name] += 1
        if name not in there:
            found.append(f"{called(scaler)}: there is no {name}")
        elif "replicas" in there[name]["spec"]:
            found.append(f"{called(scaler)}: {name} has `replicas`, which each apply sets back")
        spec = scaler["spec"]
        low = spec.get("minReplicas", spec.get("minReplicaCount", 0))
        if low > spec.get("maxReplicas", spec.get("maxReplicaCount", 100)):
            found.append(f"{called(scaler)}: at least {low} replicas are more than at most")
    return found + [
        f"{name}: {n} autoscalers would pull at it" for name, n in targets.items() if n > 1
    ]


def budgeted(documents: list[Manifest]) -> list[str]:
    """A budget never forbids every eviction, or no node could be drained."""
    found = []
    for budget in of_kind(documents, "PodDisruptionBudget"):
        spec = budget["spec"]
        if spec.get("maxUnavailable") in {0, "0", "0%"}:
            found.append(f"{called(budget)}: allows no eviction")
        for one in selected(budget, workloads(documents)):
            replicas = one.document["spec"].get("replicas")
            least = spec.get("minAvailable")
            if isinstance(least, int) and replicas is not None and least >= replicas:
                found.append(f"{called(budget)}: {least} of {one}'s {replicas} may never leave")
    return found


# Quantities: each can be read, requests fit limits, and memory has one.

QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
UNITS = {"m": Decimal("0.001")} | {
    prefix + suffix: Decimal(base) ** power
    for base, suffix in ((1000, ""), (1024, "i"))
    for power, prefix in enumerate("KMGTPE", start=1)
}
UNITS["k"] = UNITS.pop("K")
# The API server accepts fractions of a byte or a device; here they are faults.
WHOLE = re.compile(r"memory|storage|ephemeral-storage|[\w.-]+/[\w.-]+")


def number(quantity: str | int) -> Decimal:
    """What a quantity such as `250m` or `2Gi` amounts to.

    Raises:
        ValueError: It is none.
    """
    match = QUANTITY.fullmatch(str(quantity))
    if match is None:
        raise ValueError(f"{quantity!r} is no quantity")
    return Decimal(match[1]) * UNITS.get(match[2] or "", Decimal(1))


def readable(documents: list[Manifest]) -> list[str]:
    """Every quantity is one, and whole where halves mean nothing."""
    found = []
    for where, resource, quantity in _quantities(documents):
        try:
            amount = number(quantity)
        except ValueError as error:
            found.append(f"{where}: {resource}: {error}")
            continue
        if amount <= 0 or (WHOLE.fullmatch(resource) and amount % 1):
            found.append(f"{where}: {resource}: {quantity} is no amount of it")
    return found


def fitting(documents: list[Manifest]) -> list[str]:
    """No container asks for more than it may have, and all say how much memory that is."""
    found = []
    for workload in workloads(documents):
        for container in workload.containers:
            resources = container.get("resources", {})
            where = f"{workload}: {container['name']}"
            limits, requests = resources.get("limits", {}), resources.get("requests", {})
            found += [
                f"{where}: has no {side} of memory"
                for side, amounts in (("limit", limits), ("request", requests))
                if "memory" not in amounts
            ]
            if "cpu" not in requests:
                found.append(f"{where}: has no request of CPUs")
            for resource in requests.keys() & limits.keys():
                if _amount(requests[resource]) > _amount(limits[resource]):
                    found.append(f"{where}: asks for more {resource} than its limit")
    return found


def _amount(quantity: str | int) -> Decimal:
    """As a number; what is none is reported elsewhere."""
    try:
        return number(quantity)
    except ValueError:
        return Decimal(0)


def _quantities(documents: list[Manifest]) -> Iterator[tuple[str, str, str | int]]:
    for workload in workloads(documents):
        for container in workload.containers:
            for side in ("requests", "limits"):
                for resource, quantity in container.get("resources", {}).get(side, {}).items():
                    yield f"{workload}: {container['name']}: {side}", resource, quantity
        for volume in workload.pod.get("volumes", []):
            limit = (volume.get("emptyDir") or {}).get("sizeLimit")
            if limit is not None:
                yield f"{workload}: volume {volume['name']}", "storage", limit
    for claim in of_kind(documents, "PersistentVolumeClaim"):
        yield called(claim), "storage", claim["spec"]["resources"]["requests"]["storage"]
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        for metric in scaler["spec"].get("metrics", []):
            target = next(value["target"] for value in metric.values() if isinstance(value, dict))
            for kind in ("averageValue", "value"):
                if kind in target:
                    yield called(scaler), kind, target[kind]


# Ports: numbers that exist, and names that somebody has.

MAX_PORT = 65535
MAX_NAME_CHARS = 15
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def container_ports(documents: list[Manifest]) -> list[str]:
    """A container's ports are ports, each with a name of its own."""
    found = []
    for workload in workloads(documents):
        ports = _ports(workload)
        found += [
            f"{workload}: {port['containerPort']} is no port"
            for port in ports
            if not 1 <= port["containerPort"] <= MAX_PORT
        ]
        for key in ("name", "containerPort"):
            values = [port[key] for port in ports if key in port]
            if len(values) != len(set(values)):
                found.append(f"{workload}: two ports with one {key}")
        long = [p["name"] for p in ports if len(p.get("name", "")) > MAX_NAME_CHARS]
        found += [f"{workload}: {name} is too long for a port's name" for name in long]
    return found


def service_ports(documents: list[Manifest]) -> list[str]:
    """A Service leads to ports of the pods that it selects, by the numbers that they have."""
    found = []
    pods = workloads(documents)
    for service in of_kind(documents, "Service"):
        for port in service["spec"]["ports"]:
            if not 1 <= port["port"] <= MAX_PORT:
                found.append(f"{called(service)}: {port['port']} is no port")
            target = port.get("targetPort", port["port"])
            for workload in selected(service, pods):
                # A number needs no declaration: what torch listens on is chosen on a command line.
                is_number = isinstance(target, int)
                number = target if is_number else _number(target, _ports(workload))
                if number is None:
                    found.append(f"{called(service)}: {workload} has no port {target}")
                elif service["spec"].get("clusterIP") == "None" and number != port["port"]:
                    # Nothing translates numbers where a name leads to the pods themselves.
                    found.append(f"{called(service)}: {target} of {workload} is {number}")
    return found


def policy_ports(documents: list[Manifest]) -> list[str]:
    """What a policy lets in by name, the pods have; and what a Service offers, it lets in."""
    found = []
    pods = workloads(documents)
    for policy in of_kind(documents, "NetworkPolicy"):
        for workload in selected(policy, pods):
            ports = _ports(workload)
            rules = policy["spec"].get("ingress", [])
            wanted = [port["port"] for rule in rules for port in rule.get("ports", [])]
            for port in wanted:
                if _number(port, ports) is None:
                    found.append(f"{called(policy)}: {workload} has no port {port}")
            if not all("ports" in rule for rule in rules):
                continue
            let_in = {_number(port, ports) for port in wanted}
            for service, target in _offered(documents, workload):
                if _number(target, ports) not in let_in:
                    found.append(f"{called(policy)}: keeps {target} of {called(service)} shut")
    return found


def probe_ports(documents: list[Manifest]) -> list[str]:
    """A probe asks a port of its own container."""
    found = []
    for workload in workloads(documents):
        for container in workload.containers:
            for probe in PROBES:
                for kind in ("httpGet", "tcpSocket", "grpc"):
                    port = container.get(probe, {}).get(kind, {}).get("port")
                    if port is not None and _number(port, container.get("ports", [])) is None:
                        found.append(f"{workload}: {probe} asks {port}, which is no port of it")
    return found


def _ports(workload: Workload) -> list[Manifest]:
    return [port for one in workload.containers for port in one.get("ports", [])]


def _number(port: str | int, ports: list[Manifest]) -> int | None:
    """The number of a port, given by name or number; None if no container declares it."""
    numbers = {p["containerPort"] for p in ports}
    if isinstance(port, int):
        return port if port in numbers else None
    return next((p["containerPort"] for p in ports if p.get("name") == port), None)


def _offered(documents: list[Manifest], workload: Workload) -> Iterator[tuple[Manifest, str | int]]:
    for service in of_kind(documents, "Service"):
        if selected(service, [workload]):
            for port in service["spec"]["ports"]:
                yield service, port.get("targetPort", port["port"])


# References: what pods mount, read and run as is there.

# On a Deployment: `expects/NAME: KIND` for what the cluster brings.
EXPECTS = "expects/"


def objects(documents: list[Manifest]) -> list[str]:
    """ConfigMaps, Secrets, claims and accounts that pods name are there, with the keys."""
    found = []
    there = {(one["kind"], one["metadata"]["name"]): one for one in documents}
    for workload in workloads(documents):
        expected = {
            (kind, key.removeprefix(EXPECTS))
            for key, kind in workload.document["metadata"].get("annotations", {}).items()
            if key.startswith(EXPECTS)
        }
        for kind, name, keys, optional in _references(workload):
            target = there.get((kind, name))
            if target is None:
                if not optional and (kind, name) not in expected:
                    found.append(f"{workload}: there is no {kind} {name}")
                continue
            data = {**target.get("data", {}), **target.get("stringData", {})}
            found += [f"{workload}: {kind} {name} has no {key}" for key in keys if key not in data]
    return found


def claims_of_kserve(documents: list[Manifest]) -> list[str]:
    """The volume that an InferenceService's model lies on is there."""
    claims = {one["metadata"]["name"] for one in of_kind(documents, "PersistentVolumeClaim")}
    found = []
    for service in of_kind(documents, "InferenceService"):
        uri = service["spec"]["predictor"].get("model", {}).get("storageUri", "")
        claim = uri.removeprefix("pvc://").partition("/")[0]
        expected = service["metadata"].get("annotations", {}).get(EXPECTS + claim)
        if uri.startswith("pvc://") and claim not in claims and not expected:
            found.append(f"{called(service)}: there is no PersistentVolumeClaim {claim}")
    return found


def mounts(documents: list[Manifest]) -> list[str]:
    """Mounts have a volume, volumes a mount, and no two mounts of a container one place."""
    found = []
    for workload in workloads(documents):
        volumes = {volume["name"] for volume in workload.pod.get("volumes", [])}
        used = set()
        for container in workload.containers:
            mounted = container.get("volumeMounts", [])
            names = {mount["name"] for mount in mounted}
            used |= names
            where = f"{workload}: {container['name']}"
            found += [f"{where} mounts {n}, which is no volume" for n in sorted(names - volumes)]
            places = [mount["mountPath"] for mount in mounted]
            if len(places) != len(set(places)):
                found.append(f"{where} mounts two volumes in one place")
        found += [f"{workload}: no container mounts {n}" for n in sorted(volumes - used)]
    return found


def _references(workload: Workload) -> Iterator[tuple[str, str, list[str], bool]]:
    """Kind, name, keys, and whether it may be missing."""
    account = workload.pod.get("serviceAccountName")
    if account:
        yield "ServiceAccount", account, [], False
    for volume in workload.pod.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], [], False
        for kind, field, name in (
            ("Secret", "secret", "secretName"),
            ("ConfigMap", "configMap", "name"),
        ):
            source = volume.get(field)
            if source:
                keys = [item["key"] for item in source.get("items", [])]
                yield kind, source[name], keys, source.get("optional", False)
    for container in workload.containers:
        for source in container.get("envFrom", []):
            for kind, field in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if field in source:
                    reference = source[field]
                    yield kind, reference["name"], [], reference.get("optional", False)
        for variable in container.get("env", []):
            for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                reference = variable.get("valueFrom", {}).get(field)
                if reference:
                    optional = reference.get("optional", False)
                    yield kind, reference["name"], [reference["key"]], optional


def variables(container: Manifest, documents: list[Manifest]) -> dict[str, str]:
    """A container's variables as its process sees them; those from Secrets and fields are empty."""
    data = {one["metadata"]["name"]: one["data"] for one in of_kind(documents, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= data.get(source.get("configMapRef", {}).get("name"), {})
    for variable in container.get("env", []):
        reference = variable.get("valueFrom", {}).get("configMapKeyRef")
        if reference:
            found[variable["name"]] = data.get(reference["name"], {}).get(reference["key"], "")
        else:
            found[variable["name"]] = variable.get("value", "")
    return found


# The server in a pod: its variables are settings, its probes its routes, its paths mounted.

# What KServe writes in the place of a runtime's braces, and where it puts the model.
NAME_IN_BRACES, NAME = "{{.Name}}", "tipserve"
KSERVE_MODELS = "/mnt/models"
WRITTEN = ("cache", "ports_file")
READ = ("api_keys_file", "tls_cert", "tls_key", "tls_client_ca", "model_repository")
SECRETS = ("api_keys",)


def settings(documents: list[Manifest]) -> list[str]:
    """The server takes its variables, and no secret is among them."""
    found = []
    for workload, container in _servers(documents):
        environment = _environment(container, documents)
        try:
            _settings(container, documents)
        except (ValueError, SystemExit) as error:
            found.append(f"{workload}: the server refuses its settings: {error}")
        for name in SECRETS:
            if PREFIX + name.upper() in environment:
                found.append(f"{workload}: {name} belongs into a file, not into a variable")
    return found


def ports(documents: list[Manifest]) -> list[str]:
    """The container's ports are those that the server listens on."""
    found = []
    for workload, container, chosen in _accepted(documents):
        if chosen.host in {"127.0.0.1", "::1", "localhost"}:
            found.append(f"{workload}: the server answers no request from outside its pod")
        for name in ("http", "grpc", "metrics"):
            number = getattr(chosen, f"{name}_port")
            has = {p["name"]: p["containerPort"] for p in container.get("ports", [])}.get(name)
            if has != number:
                found.append(f"{workload}: its port {name} is {has}, the server's is {number}")
    return found


def probes(documents: list[Manifest]) -> list[str]:
    """All three probes ask what the server answers there, each what it means."""
    found = []
    for workload, container, chosen in _accepted(documents):
        numbers = {p.get("name"): p["containerPort"] for p in container.get("ports", [])}
        for probe, meaning in (
            ("startupProbe", READY),
            ("readinessProbe", READY),
            ("livenessProbe", LIVE),
        ):
            asked = container.get(probe, {}).get("httpGet")
            if asked is None:
                found.append(f"{workload}: has no {probe} over HTTP")
                continue
            port = numbers.get(asked["port"], asked["port"])
            answered = {chosen.http_port: rest_paths(), chosen.metrics_port: {LIVE, READY}}
            if asked["path"] not in answered.get(port, set()):
                found.append(f"{workload}: {probe}: nothing answers {asked['path']} on {port}")
            elif asked["path"] != meaning:
                found.append(f"{workload}: {probe} asks {asked['path']}, not {meaning}")
            has_tls = chosen.tls_cert is not None and port == chosen.http_port
            if has_tls != (asked.get("scheme", "HTTP") == "HTTPS") or (
                has_tls and chosen.tls_client_ca is not None
            ):
                found.append(f"{workload}: {probe}: the server does not answer so on {port}")
    return found


def shutdown(documents: list[Manifest]) -> list[str]:
    """Who waits for nothing else is given time by preStop, and the drain fits the grace period."""
    found = []
    for workload, container, chosen in _accepted(documents):
        before_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        told_s = before_s.get("seconds", 0) + chosen.drain_delay_s
        if not told_s:
            found.append(f"{workload}: stops before balancers know")
        needed_s = told_s + chosen.drain_timeout_s + WRITE_GRACE_S + LOG_GRACE_S + TRACE_GRACE_S
        grace_s = _grace_s(workload, documents)
        if grace_s <= needed_s:
            found.append(f"{workload}: killed after {grace_s} s, but may need {needed_s} s")
    return found


def paths(documents: list[Manifest]) -> list[str]:
    """What the server reads is mounted, and where it writes it may."""
    found: list[str] = []
    for workload, container, chosen in _accepted(documents):
        written = [getattr(chosen, name) for name in WRITTEN]
        read = [getattr(chosen, name) for name in READ]
        read += [source.partition("=")[2] or source for source in chosen.model]
        found += _unmounted(workload, container, read=read, written=["/tmp", *written])
    for workload in workloads(documents):
        for container in workload.pod.get("initContainers", []):
            environment = variables(container, documents)
            written = [
                value
                for name, value in environment.items()
                if name in {"TIPSERVE_CACHE", "HF_HOME"}
            ]
            read = [environment.get("TIPSERVE_MODEL", "")]
            found += _unmounted(workload, container, read=read, written=written)
    return found


def startup(documents: list[Manifest]) -> list[str]:
    """A rollout is not called stuck while a pod may still start."""
    found = []
    for workload, container in _servers(documents):
        deadline_s = workload.document["spec"].get("progressDeadlineSeconds", 600)
        probe = container.get("startupProbe", {})
        limit_s = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
        if workload.document["kind"] == "Deployment" and limit_s >= deadline_s:
            found.append(f"{workload}: may start for {limit_s} s, but must be done in {deadline_s}")
    return found


def files(documents: list[Manifest]) -> list[str]:
    """A file that the server reads out of a Secret is one of its keys."""
    found = []
    secrets = {one["metadata"]["name"]: one for one in of_kind(documents, "Secret")}
    for workload, container, chosen in _accepted(documents):
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
        mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
        for path in filter(None, (getattr(chosen, name) for name in READ)):
            volume = volumes.get(mounts.get(str(path.parent), ""), {})
            secret = secrets.get(volume.get("secret", {}).get("secretName"))
            if secret is None:
                continue
            if path.name not in {**secret.get("data", {}), **secret.get("stringData", {})}:
                found.append(f"{workload}: {called(secret)} has no {path.name}")
    return found


@cache
def rest_paths() -> frozenset[str]:
    """What REST answers to GET."""
    router = build_router(create_autospec(DataPlane))
    routes = [route for route in router.routes if isinstance(route, APIRoute)]
    return frozenset(route.path for route in routes if "GET" in (route.methods or ()))


def _unmounted(
    workload: Workload, container: Manifest, *, read: list[object], written: list[object]
) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
    mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}
    if workload.document["kind"] == "ServingRuntime":
        mounts[KSERVE_MODELS] = {"name": "", "readOnly": True}
    for path, writes in [(p, False) for p in read] + [(p, True) for p in written]:
        if path is None or not str(path).startswith("/"):
            continue
        whole = PurePosixPath(str(path))
        above = [place for place in map(str, (whole, *whole.parents)) if place in mounts]
        where = f"{workload}: {container['name']}"
        if not above:
            yield f"{where}: nothing is mounted at {path}"
        elif writes:
            mount = mounts[above[0]]
            volume = volumes.get(mount["name"], {})
            if mount.get("readOnly") or not {"emptyDir", "persistentVolumeClaim"} & volume.keys():
                yield f"{where}: cannot write to {path}"


def _servers(documents: list[Manifest]) -> Iterator[tuple[Workload, Manifest]]:
    for workload in workloads(documents):
        for container in workload.servers:
            yield workload, container


def _accepted(documents: list[Manifest]) -> Iterator[tuple[Workload, Manifest, Settings]]:
    """Servers with the settings that they take; those that they refuse are reported once."""
    for workload, container in _servers(documents):
        try:
            chosen = _settings(container, documents)
        except (ValueError, SystemExit):
            continue
        yield workload, container, chosen


def _environment(container: Manifest, documents: list[Manifest]) -> dict[str, str]:
    found = variables(container, documents)
    return {name: value.replace(NAME_IN_BRACES, NAME) for name, value in found.items()}


def _settings(container: Manifest, documents: list[Manifest]) -> Settings:
    environment = _environment(container, documents)
    with patch.dict(os.environ, environment, clear=True):
        return load_settings(container.get("args", []), environment)


def _grace_s(workload: Workload, documents: list[Manifest]) -> int:
    """Of a ServingRuntime it is written in the InferenceServices that use it; the shortest."""
    name = workload.document["metadata"]["name"]
    specs = [workload.pod]
    if workload.document["kind"] == "ServingRuntime":
        predictors = [one["spec"]["predictor"] for one in of_kind(documents, "InferenceService")]
        specs = [one for one in predictors if one.get("model", {}).get("runtime") == name]
    return min((one.get("terminationGracePeriodSeconds", 30) for one in specs), default=30)


# Images and users: pods run images that this project builds, as the user that is in them.

DOCKERFILE = Path(__file__).resolve().parents[2] / "Dockerfile"
IMAGE = re.compile(r"tipserve:0\.1\.0(-(gpu|convert|train|bulk|ray))?")
HARDENED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def images(documents: list[Manifest]) -> list[str]:
    """Every image is one of ours, by a tag that is never moved."""
    return [
        f"{workload}: {container['name']}: {container.get('image')} is no image of this project"
        for workload in workloads(documents)
        for container in workload.containers
        if not IMAGE.fullmatch(container.get("image", ""))
    ]


def users(documents: list[Manifest]) -> list[str]:
    """Containers run as the user of their image, who is not root, and are hardened."""
    found = []
    user = _image_user()
    for workload in workloads(documents):
        for container in workload.containers:
            context = {
                **workload.pod.get("securityContext", {}),
                **container.get("securityContext", {}),
            }
            where = f"{workload}: {container['name']}"
            if (context.get("runAsUser"), context.get("runAsGroup")) != user:
                found.append(f"{where}: runs as another user than the image's {user}")
            if context.get("runAsNonRoot") is not True:
                found.append(f"{where}: might run as root")
            if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
                found.append(f"{where}: has no seccomp profile")
            for name, value in HARDENED.items():
                if context.get(name) != value:
                    found.append(f"{where}: {name} is {context.get(name)}")
    return found


def accounts(documents: list[Manifest]) -> list[str]:
    """No pod gets a token for the API server, or variables that Services of its namespace set."""
    found = []
    for workload in workloads(documents):
        pods = [workload.pod]
        if workload.document["kind"] == "ServingRuntime":
            pods = [
                one["spec"]["predictor"] for one in documents if one["kind"] == "InferenceService"
            ]
        for pod in pods:
            for name in ("automountServiceAccountToken", "enableServiceLinks"):
                if pod.get(name) is not False:
                    found.append(f"{workload}: {name} is not false")
    return found


def _image_user() -> tuple[int, int]:
    users = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    user, group = users[-1]
    return int(user), int(group)


# Queries: what autoscalers and rules ask Prometheus for is something that the server says.

# Of what rules record, the name has colons.
METRIC_NAME = re.compile(r"\b[a-z_][a-z0-9_:]*")
SUFFIX = re.compile(r"_(bucket|sum|count|total|created)$")


def metrics(documents: list[Manifest]) -> list[str]:
    """Every metric of ours in a query is one that the server has."""
    return [
        f"{called(document)}: the server has no metric {name}"
        for document, query in _queries(documents)
        for name in METRIC_NAME.findall(query)
        if name.startswith("tipserve_") and ":" not in name
        if not {name, SUFFIX.sub("", name)} & served()
    ]


def recorded(documents: list[Manifest]) -> list[str]:
    """Every series that a rule would record is recorded by one that is applied with it."""
    records = {
        rule["record"]
        for one in of_kind(documents, "PrometheusRule")
        for group in one["spec"]["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    return [
        f"{called(document)}: no rule records {name}"
        for document, query in _queries(documents)
        for name in METRIC_NAME.findall(query)
        if ":" in name and name not in records
    ]


@cache
def served() -> frozenset[str]:
    """Names of all metrics, without what histograms and counters put behind them."""
    everything = Metrics()
    everything.watch_certificate(lambda: 0.0)
    names = {family.name for family in everything.registry.collect()}
    return frozenset(names | {name for name, _, _ in READINGS})


def _queries(documents: list[Manifest]) -> Iterator[tuple[Manifest, str]]:
    for document in of_kind(documents, "ScaledObject"):
        for trigger in document["spec"]["triggers"]:
            yield document, trigger["metadata"].get("query", "")
    for document in of_kind(documents, "PrometheusRule"):
        for group in document["spec"]["groups"]:
            for rule in group["rules"]:
                yield document, rule["expr"]


# What a cluster would find out too late, or never: names and numbers of manifests that must agree.
#
# Schemas know none of it. Every check is a pure function over documents as `kubectl kustomize`
# writes them, and says each fault in a sentence that begins with the object.

Check = Callable[[list[Manifest]], list[str]]
CHECKS: tuple[Check, ...] = (
    own_selectors,
    others_selectors,
    monitored,
    autoscaled,
    budgeted,
    readable,
    fitting,
    container_ports,
    service_ports,
    policy_ports,
    probe_ports,
    objects,
    claims_of_kserve,
    mounts,
    settings,
    ports,
    probes,
    startup,
    shutdown,
    paths,
    files,
    images,
    users,
    accounts,
    metrics,
    recorded,
)


def faults(documents: list[Manifest]) -> list[str]:
    """All that does not fit together in what is applied together."""
    return [fault for check in CHECKS for fault in check(documents)]
