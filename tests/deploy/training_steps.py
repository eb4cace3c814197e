"""The containers of `deploy/training/` as commands that run here: variables filled in, paths moved.

What a kubelet does for a container is done here: values come from the ConfigMap and from the pod's
labels, and `$(NAME)` in arguments is replaced. Besides that only places change: volumes become
folders, the names of machines the loopback address, and programs those of this environment.
"""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.tools import find_tool

Manifest = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "training"
LIMIT_S = 60.0
REFERENCE = re.compile(r"\$\(([A-Z_]+)\)")
PROGRAMS = {
    "python": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
}


@functools.cache
def _built(name: str) -> str:
    ended = subprocess.run(
        [find_tool("kubectl"), "kustomize", str(FOLDER / name)],
        capture_output=True,
        check=False,
        text=True,
        timeout=LIMIT_S,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def build(name: str) -> list[Manifest]:
    """The documents of one kustomization below `deploy/training/`, fresh ones at every call."""
    return list(yaml.load_all(_built(name), yaml.CSafeLoader))


def find(documents: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The one document of a kind with this name, which kustomize may have put a digest to."""
    wanted = re.compile(rf"{re.escape(name)}(-[a-z0-9]{{10}})?")
    (found,) = [
        document
        for document in documents
        if document["kind"] == kind and wanted.fullmatch(document["metadata"]["name"])
    ]
    return found


def chain_pod(documents: Sequence[Manifest]) -> Manifest:
    """The spec of the chain's pods."""
    job = find(documents, "CronJob", "tipserve-retrain")["spec"]["jobTemplate"]["spec"]
    spec = job["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def chain_steps(documents: Sequence[Manifest]) -> list[Manifest]:
    """The chain's containers in the order in which they run."""
    pod = chain_pod(documents)
    return [*pod["initContainers"], *pod["containers"]]


def environment(
    container: Manifest, documents: Sequence[Manifest], labels: Mapping[str, str]
) -> dict[str, str]:
    """The variables that the container is given; the pod has these labels besides its own."""
    values: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        name = source["configMapRef"]["name"]
        values |= find(documents, "ConfigMap", name)["data"]
    for variable in container.get("env", ()):
        if "value" in variable:
            values[variable["name"]] = variable["value"]
        else:
            path = variable["valueFrom"]["fieldRef"]["fieldPath"]
            label = re.fullmatch(r"metadata\.labels\['(.+)'\]", path)
            assert label is not None, path
            values[variable["name"]] = labels[label[1]]
    return values


def expand(text: str, values: Mapping[str, str]) -> str:
    """Put variables in their places, as the kubelet does; one that is not there is a mistake."""
    return REFERENCE.sub(lambda match: values[match[1]], text)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders here for the volumes' places in the container.

    Attributes:
        root: Its folders `data`, `runs`, `models` and `config` are the volumes'.
        port: Where processes of several pods meet.
    """

    root: Path
    port: int = 0

    def move(self, text: str) -> str:
        """The same text with folders of this machine."""
        return re.sub(r"(?<![\w./])/(data|runs|models|config|secrets)(?=/|$)", self._moved, text)

    def _moved(self, match: re.Match[str]) -> str:
        return str(self.root / match[1])

    def variables(self, values: Mapping[str, str]) -> dict[str, str]:
        """What the container's variables are here, beside this machine's own."""
        moved = {**values, "HOME": str(self.root)}
        if "PET_MASTER_ADDR" in moved:
            moved |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(self.port)}
        # Two cores are shared with whatever else is tested, and a pod has no code but its own.
        ours = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
        return {**os.environ, **moved, **ours}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command with its variables, ready to be run.

    Attributes:
        name: Of the container.
        command: Program and arguments.
        variables: Its whole environment.
    """

    name: str
    command: Sequence[str]
    variables: Mapping[str, str]

    def start(self) -> "subprocess.Popen[str]":
        """Start it, in a folder without anything."""
        return subprocess.Popen(
            self.command,
            cwd=self.variables["HOME"],
            env=dict(self.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def make_step(container: Manifest, values: Mapping[str, str], places: Places) -> Step:
    """A container's own command and arguments, with variables filled in and places moved."""
    words = [expand(word, values) for word in (*container["command"], *container["args"])]
    program, *arguments = words
    command = [*PROGRAMS[program], *(places.move(word) for word in arguments)]
    return Step(name=container["name"], command=command, variables=places.variables(values))
