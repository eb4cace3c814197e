"""The containers of `deploy/training/` as commands that run on this machine.

As a kubelet does, this takes values from the ConfigMap and the pod's labels and replaces `$(NAME)`
in arguments. Volumes become folders, host names the loopback address, and programs those of this
environment.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.deploy import kustomizations
from tests.deploy.workloads import Manifest, variables, workloads

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "training"
# As a kubelet and a shell write them.
REFERENCE = re.compile(r"\$\(?([A-Z_]+|run)\b\)?")
PROGRAMS = {
    "python": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
}


def build(name: str) -> list[Manifest]:
    """The documents of one kustomization below `deploy/training/`."""
    return kustomizations.build(f"training/{name}")


def find(documents: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The one document with this kind and name; kustomize may have appended a digest."""
    wanted = re.compile(rf"{re.escape(name)}(-[a-z0-9]{{10}})?")
    (found,) = [
        document
        for document in documents
        if document["kind"] == kind and wanted.fullmatch(document["metadata"]["name"])
    ]
    return found


def chain_pods(documents: Sequence[Manifest]) -> list[Manifest]:
    """The specs of the chain's pods in the order in which they run."""
    pods = {one.document["metadata"]["name"]: one.pod for one in workloads(documents)}
    names = ("tipserve-caption", "tipserve-retrain", "tipserve-publish")
    return [pods[name] for name in names if name in pods]


def chain_steps(documents: Sequence[Manifest]) -> list[Manifest]:
    """The chain's containers in the order in which they run."""
    kinds = ("initContainers", "containers")
    return [one for pod in chain_pods(documents) for kind in kinds for one in pod.get(kind, [])]


def environment(
    container: Manifest, documents: Sequence[Manifest], labels: Mapping[str, str]
) -> dict[str, str]:
    """The container's variables in a pod with these labels."""
    values = variables(container, list(documents))
    for variable in container.get("env", ()):
        if field := variable.get("valueFrom", {}).get("fieldRef"):
            label = re.fullmatch(r"metadata\.labels\['(.+)'\]", field["fieldPath"])
            assert label is not None, field
            values[variable["name"]] = labels[label[1]]
    return values


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace variables as the kubelet does; an unknown one fails."""
    return REFERENCE.sub(lambda match: values[match[1]], text)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders of this machine in place of the container's volumes.

    Attributes:
        root: Holds a folder for each volume: `data`, `runs`, `models`, `config`, `secrets`.
        port: Port on which processes of several pods meet.
    """

    root: Path
    port: int = 0

    def move(self, text: str) -> str:
        """The same text with folders of this machine."""
        places = r"(?<![\w./])/(data|runs|models|config|secrets)(?![\w-])"
        return re.sub(places, lambda match: str(self.root / match[1]), text)

    def variables(self, values: Mapping[str, str]) -> dict[str, str]:
        """The container's variables with moved places, besides this machine's own."""
        moved = {**values, "HOME": str(self.root)}
        if "PET_MASTER_ADDR" in moved:
            moved |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(self.port)}
        # Other tests share the cores, and only the code of this checkout is imported.
        ours = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
        # Scripts find this environment's `python`.
        ours["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, **moved, **ours}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A container's name, its command, and its whole environment."""

    name: str
    command: Sequence[str]
    variables: Mapping[str, str]

    def start(self) -> "subprocess.Popen[str]":
        """Start it in the home folder."""
        return subprocess.Popen(
            self.command,
            cwd=self.variables["HOME"],
            env=dict(self.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def commands(container: Manifest, documents: Sequence[Manifest]) -> list[list[str]]:
    """The commands of a container, those of its script one by one, with variables in them."""
    if container["command"] != ["sh"]:
        return [[*container["command"], *container["args"]]]
    (path,) = container["args"]
    text = find(documents, "ConfigMap", "tipserve-retrain-files")["data"][Path(path).name]
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(x)[: -2 if "||" in x else None] for x in lines if x.startswith("python ")]


def make_step(container: Manifest, values: Mapping[str, str], places: Places) -> Step:
    """A container's own command with variables replaced and places moved."""
    program, *arguments = (expand(x, values) for x in (*container["command"], *container["args"]))
    command = [*PROGRAMS.get(program, [program]), *(places.move(word) for word in arguments)]
    return Step(name=container["name"], command=command, variables=places.variables(values))
