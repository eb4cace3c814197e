"""Faults of custom resources by the published models of their kinds."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubeflow_trainer_api.models as trainer
import yaml
from pydantic import ValidationError

from tests.deploy import field_tables
from tests.deploy.field_tables import Fault
from tests.deploy.strict_schemas import is_builtin
from tests.deploy.workloads import Manifest, called
from tests.tools import TOOLS, find_tool, miss

# The first start of Node on a busy machine takes most of it.
LIMIT_S = 120.0
GROUPS_OF_NODE = ("gateway.networking.k8s.io", "keda.sh", "monitoring.coreos.com")
KSERVE = {
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
}


def faults(sets: dict[str, list[Manifest]]) -> dict[str, list[str]]:
    """Faults of each named set, as `Kind/name: field: message`; all sets share one Node process."""
    custom = [(name, one) for name, many in sets.items() for one in many if not is_builtin(one)]
    for_node = [
        pair for pair in custom if pair[1]["apiVersion"].partition("/")[0] in GROUPS_OF_NODE
    ]
    found: list[tuple[str, Manifest, str, str]] = [
        (*for_node[index], field, message)
        for index, field, message in _node_faults([one for _, one in for_node])
    ]
    for pair in custom:
        if pair not in for_node:
            found += [(*pair, field, message) for field, message in _faults_of_one(pair[1])]
    answer: dict[str, list[str]] = {name: [] for name in sets}
    for name, one, field, message in found:
        answer[name].append(f"{called(one)}: {field}: {message}")
    return answer


def _faults_of_one(document: Manifest) -> Iterator[Fault]:
    key = (document["apiVersion"], document["kind"])
    if key == ("trainer.kubeflow.org/v1alpha1", "TrainJob"):
        yield from _trainer_faults(document)
    elif key in KSERVE:
        folder = TOOLS.parent / "kserve-models" / "kserve" / "models"
        if not folder.is_dir():
            miss("KServe's models are missing: run scripts/install_tools.sh")
        yield from field_tables.faults(document, KSERVE[key], field_tables.kserve_tables(folder))
    elif key == ("ray.io/v1", "RayJob"):
        text = Path(__file__).with_name("ray_fields.yaml").read_text(encoding="utf-8")
        yield from field_tables.faults(document, "RayJob", yaml.safe_load(text))
    else:
        yield "", f"no model of {key}"


def _trainer_faults(document: Manifest) -> Iterator[Fault]:
    """Faults by the Trainer's pydantic models, and the fields that these silently ignore."""
    try:
        kept = trainer.TrainerV1alpha1TrainJob.from_dict(document).to_dict()
    except ValidationError as error:
        for one in error.errors():
            yield "".join(f"/{part}" for part in one["loc"]), one["msg"]
    else:
        yield from _lost(document, kept, "")


def _lost(given: Any, kept: Any, path: str) -> Iterator[Fault]:
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            yield from _lost(value, kept.get(key), f"{path}/{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, pair in enumerate(zip(given, kept, strict=True)):
            yield from _lost(*pair, f"{path}/{index}")
    elif given != kept:
        yield path, f"is an unknown field, or was read as {kept!r}"


def _node_faults(documents: list[Manifest]) -> list[tuple[int, str, str]]:
    """Index, field and message by the npm models of KEDA and the Prometheus operator."""
    folder = TOOLS.parent / "kubernetes-models"
    if not folder.is_dir():
        miss("the models of custom resources are missing: run scripts/install_tools.sh")
    script = Path(__file__).with_name("validate_crds.mjs")
    ended = subprocess.run(
        [find_tool("node"), str(script), str(folder)],
        input=json.dumps(documents),
        capture_output=True,
        check=False,
        text=True,
        timeout=LIMIT_S,
    )
    assert ended.returncode == 0, ended.stderr
    return [(index, field, message) for index, field, message in json.loads(ended.stdout)]
