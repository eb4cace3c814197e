"""What a cluster would find out too late, or never: names and numbers of manifests that must agree.

Schemas know none of it. Every check is a pure function over documents as `kubectl kustomize` writes
them, and says each fault in a sentence that begins with the object.
"""

from collections.abc import Callable

from tests.deploy import (
    image_checks,
    port_checks,
    quantity_checks,
    query_checks,
    reference_checks,
    selector_checks,
    server_checks,
)
from tests.deploy.workloads import Manifest

Check = Callable[[list[Manifest]], list[str]]

CHECKS: tuple[Check, ...] = (
    selector_checks.own_selectors,
    selector_checks.others_selectors,
    selector_checks.monitored,
    selector_checks.autoscaled,
    selector_checks.budgeted,
    quantity_checks.readable,
    quantity_checks.fitting,
    port_checks.container_ports,
    port_checks.service_ports,
    port_checks.policy_ports,
    port_checks.probe_ports,
    reference_checks.objects,
    reference_checks.claims_of_kserve,
    reference_checks.mounts,
    server_checks.settings,
    server_checks.ports,
    server_checks.probes,
    server_checks.startup,
    server_checks.shutdown,
    server_checks.paths,
    server_checks.files,
    image_checks.images,
    image_checks.users,
    image_checks.accounts,
    query_checks.metrics,
    query_checks.recorded,
)


def faults(documents: list[Manifest]) -> list[str]:
    """All that does not fit together in what is applied together."""
    return [fault for check in CHECKS for fault in check(documents)]
