"""Ports: numbers that exist, and names that somebody has."""

from collections.abc import Iterator

from tests.deploy.selector_checks import selected
from tests.deploy.workloads import Manifest, Workload, called, of_kind, workloads

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
    """The number of a port, given by name or number; None where nobody has it."""
    numbers = {p["containerPort"] for p in ports}
    if isinstance(port, int):
        return port if port in numbers else None
    return next((p["containerPort"] for p in ports if p.get("name") == port), None)


def _offered(documents: list[Manifest], workload: Workload) -> Iterator[tuple[Manifest, str | int]]:
    for service in of_kind(documents, "Service"):
        if selected(service, [workload]):
            for port in service["spec"]["ports"]:
                yield service, port.get("targetPort", port["port"])
