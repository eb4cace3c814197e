"""Images and users: pods run images that this project builds, as the user that is in them."""

import re
from pathlib import Path

from tests.deploy.workloads import Manifest, workloads

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
