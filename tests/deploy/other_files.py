"""Faults of files beside the manifests: compose.yaml, the Dockerfile, the workflow of releases.

Every check takes a file's text and yields one sentence per fault.
"""

import re
import shlex
import urllib.request
from unittest.mock import patch

import yaml

from service.monitoring.metrics_server import READY
from tests.deploy import cross_references
from tests.deploy.cross_references import Faults
from tests.deploy.kustomizations import build
from tests.deploy.workloads import workloads


def compose(text: str) -> Faults:
    """The proxy and the server on one machine are the chart's pod."""
    services = yaml.safe_load(text)["services"]
    proxy, server = services["proxy"], services["tipserve"]
    documents = build("cpu")
    (workload,) = workloads(documents)
    front = workload.pod["initContainers"][-1]
    for field in ("image", "command"):
        if proxy[field] != front[field]:
            yield f"proxy: {field} is {proxy[field]}, and {front[field]} in the pod"
    if "ports" in server or {*proxy["ports"][:2]} != {"8000:8000", "8001:8001"}:
        yield "callers reach other ports than the proxy's"
    if not all(port.startswith("127.0.0.1:") for port in proxy["ports"][2:]):
        yield "callers reach metrics"
    chosen = cross_references.settings_of(server["environment"])
    here, there = (one["networks"]["inner"]["ipv4_address"] for one in (proxy, server))
    if [str(one) for one in chosen.trusted_proxies] != [f"{here}/32"]:
        yield f"the server trusts {chosen.trusted_proxies}, and its proxy is {here}"
    environment = proxy["environment"]
    for protocol, port in (("REST", chosen.http_port), ("GRPC", chosen.grpc_port)):
        if environment[f"PROXY_{protocol}_SERVER"] != f"{there}:{port}":
            yield f"the proxy asks another server than {there}:{port} for {protocol}"
    if float(proxy["stop_grace_period"].removesuffix("s")) <= chosen.request_timeout_s:
        yield "a stop of the proxy cuts requests"
    yield from cross_references.memory(server["mem_limit"], chosen)
    yield from cross_references.front_memory(proxy["mem_limit"], environment)
    grace_s = float(server["stop_grace_period"].removesuffix("s"))
    if grace_s <= cross_references.stop_s(chosen):
        yield f"the server is killed after {grace_s} of {cross_references.stop_s(chosen)} s"
    # It serves the bundled model, which runs without OpenVINO.
    if server["build"]["args"] != {"EXTRA": "cpu-onnx,otel"} or server["image"][-5:] != "-onnx":
        yield "the server's image has more than the bundled model needs"
    for name in ("proxy", "tipserve"):
        one = services[name]
        if not one["read_only"] or one["cap_drop"] != ["ALL"]:
            yield f"{name} has more rights than in the pod"


def dockerfile(text: str) -> Faults:
    """The health check asks the port for metrics, also where it is another one."""
    (check,) = re.findall(r"^HEALTHCHECK .*\\\n\s+CMD (\[.*\])$", text, re.MULTILINE)
    program = yaml.safe_load(check)
    if program[:-1] != ["python", "-P", "-c"]:
        yield f"the health check runs {shlex.join(program)}"
        return
    for port, variables_ in ((8002, {}), (9002, {"TIPSERVE_METRICS_PORT": "9002"})):
        asked: list[str] = []

        def urlopen(url: str, timeout: float, asked: list[str] = asked) -> None:
            asked.append(url)

        environment = patch.dict("os.environ", variables_, clear=True)
        with environment, patch.object(urllib.request, "urlopen", urlopen):
            exec(program[-1], {})
        if asked != [f"http://127.0.0.1:{port}{READY}"]:
            yield f"the health check asks {asked}, and not port {port}"


def release(text: str) -> Faults:
    """Nothing is published before all tests, with known faults, or before what it needs."""
    workflow = yaml.safe_load(text)
    # YAML reads `on` as true.
    if workflow[True] != {"push": {"tags": ["v*"]}}:
        yield f"{workflow[True]} starts a release"
    jobs = workflow["jobs"]
    if ".ci/run" not in jobs["tests"]["steps"][-1]["run"]:
        yield "no tests run"
    before: dict[str, list[str]] = {}
    for name in jobs:
        needed, before[name] = name, []
        while "needs" in jobs[needed]:
            needed = jobs[needed]["needs"]
            before[name].append(needed)
        if "permissions" in jobs[name] and "tests" not in before[name]:
            yield f"{name} publishes before the tests"
    if "images" not in before["chart"]:
        yield "the chart is published without the images that it names"
    steps = jobs["images"]["steps"]
    scan, *_ = (n for n, step in enumerate(steps) if "trivy-action" in step.get("uses", ""))
    sign, *_ = (n for n, step in enumerate(steps) if "cosign sign" in step.get("run", ""))
    given = steps[scan]["with"]
    if scan > sign or given["exit-code"] != "1":
        yield "images with known faults are signed"
    if not given["image-ref"].endswith("@${{ steps.build.outputs.digest }}"):
        yield f"{given['image-ref']} is scanned, and another image may be signed"
