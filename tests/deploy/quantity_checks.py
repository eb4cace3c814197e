"""Quantities: each can be read, requests fit limits, and memory has one."""

import re
from collections.abc import Iterator
from decimal import Decimal

from tests.deploy.workloads import Manifest, called, of_kind, workloads

QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
UNITS = {"m": Decimal("0.001")} | {
    prefix + suffix: Decimal(base) ** power
    for base, suffix in ((1000, ""), (1024, "i"))
    for power, prefix in enumerate("KMGTPE", start=1)
}
UNITS["k"] = UNITS.pop("K")
# Fractions of a byte or of a device are no mistake to the API server, and one to everybody else.
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
