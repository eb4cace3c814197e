"""The server in a pod: its variables are settings, its probes its routes, its paths mounted."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath
from unittest.mock import create_autospec, patch

from fastapi.routing import APIRoute

from service.data_plane import DataPlane
from service.monitoring.metrics_server import LIVE, READY
from service.rest.routes import build_router
from service.server import LOG_GRACE_S, TRACE_GRACE_S, WRITE_GRACE_S
from service.settings import PREFIX, Settings, load_settings
from tests.deploy.reference_checks import variables
from tests.deploy.workloads import Manifest, Workload, called, of_kind, workloads

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
            found.append(f"{workload}: the server answers nobody outside its pod")
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
