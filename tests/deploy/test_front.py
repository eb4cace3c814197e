"""The sidecar in front of gRPC, by itself and with what it is combined with."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.deploy.kustomizations import build
from tests.deploy.workloads import Manifest, of_kind, variables, workloads
from tests.processes.front import SETTINGS, container
from tests.processes.proxy import CONFIGURATION
from tests.tools import run

COMBINED = "cpu monitoring keda api-keys tls tracing gateway front model-volume"


def pod_of(documents: list[Manifest]) -> Any:
    (found,) = [one.pod for one in workloads(documents) if one.servers]
    return found


def variables_of(name: str, which: str) -> dict[str, str]:
    documents = build(name)
    (workload,) = [one for one in workloads(documents) if one.servers]
    (found,) = [one for one in workload.containers if one["name"] == which]
    given = variables(found, documents)
    # A variable of a key that is not there does not exist.
    optional = {v["name"] for v in found["env"] if "valueFrom" in v and not given[v["name"]]}
    return {key: value for key, value in given.items() if key not in optional}


@pytest.mark.parametrize("name", ["kubernetes/components/front", COMBINED])
def test_haproxy_accepts_the_sidecars_configuration(name: str, tmp_path: Path) -> None:
    (configuration,) = [
        one["data"]["haproxy.cfg"]
        for one in of_kind(build(name), "ConfigMap")
        if "haproxy.cfg" in one["data"]
    ]
    assert configuration == CONFIGURATION.read_text(encoding="utf-8")
    own = variables_of(name, "front")
    assert ("PROXY_TLS_CERT" in own) == ("tls" in name)
    if "tls" in name:
        own["PROXY_TLS_CERT"] = str(certificate(tmp_path))
    checked = run("haproxy", "-c", "-q", "-f", CONFIGURATION, env={**os.environ, **own})
    assert (checked.returncode, checked.stderr) == (0, "")


def test_only_the_sidecar_reaches_the_server_and_it_is_trusted() -> None:
    documents = build("kubernetes/components/front")
    server = variables_of("kubernetes/components/front", "tipserve")
    front = variables_of("kubernetes/components/front", "front")
    given = dict(one.removeprefix("--").split("=") for one in SETTINGS)
    assert (
        given.items()
        <= {
            "grpc-host": server["TIPSERVE_GRPC_HOST"],
            "trusted-proxies": server["TIPSERVE_TRUSTED_PROXIES"],
        }.items()
    )
    where = f"{server['TIPSERVE_GRPC_HOST']}:{server['TIPSERVE_GRPC_PORT']}"
    assert front["PROXY_SERVER"] == where
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert front["PROXY_GRPC"] == f":{ports['grpc']}"
    assert "grpc" not in {port["name"] for port in pod_of(documents)["containers"][0]["ports"]}


def test_callers_leave_the_sidecar_before_the_server_drains() -> None:
    pod = pod_of(build("kubernetes/components/front"))
    (sidecar,) = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always", "or it is no sidecar"
    (text,) = re.findall(
        r"^sleep (\d+); kill -USR1 1$", sidecar["lifecycle"]["preStop"]["exec"]["command"][-1]
    )
    assert 0 < int(text) < pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]


def test_production_has_it() -> None:
    sidecars = pod_of(build("kubernetes/overlays/production"))["initContainers"]
    assert [one["name"] for one in sidecars] == ["front"]


def certificate(folder: Path) -> Path:
    """A certificate `tls.crt` with its key `tls.key` beside it, as in a Secret."""
    leaf = trustme.CA().issue_cert("localhost")
    (folder / "tls.key").write_bytes(leaf.private_key_pem.bytes())
    (folder / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    return folder / "tls.crt"


def test_all_variables_of_the_sidecar_are_in_its_configuration() -> None:
    known = set(re.findall(r"PROXY_\w+", CONFIGURATION.read_text(encoding="utf-8")))
    assert {one["name"] for one in container()["env"]} <= known
