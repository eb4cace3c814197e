"""Says where custom resources break the published descriptions of their kinds.

A kind that nothing describes is a fault.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubeflow_trainer_api.models as trainer
from pydantic import BaseModel, ValidationError

from tests.deploy import field_tables
from tests.deploy.strict_schemas import is_builtin
from tests.deploy.workloads import Manifest, called
from tests.tools import TOOLS, find_tool, miss

# The first start of Node on a loaded machine takes most of it.
LIMIT_S = 120.0
OF_NODE = ("keda.sh", "monitoring.coreos.com")
OF_TRAINER: dict[str, type[BaseModel]] = {
    "TrainJob": trainer.TrainerV1alpha1TrainJob,
    "TrainingRuntime": trainer.TrainerV1alpha1TrainingRuntime,
    "ClusterTrainingRuntime": trainer.TrainerV1alpha1ClusterTrainingRuntime,
}
OF_KSERVE = {
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
    ("serving.kserve.io/v1alpha1", "ClusterServingRuntime"): "V1alpha1ClusterServingRuntime",
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
}


def faults(sets: dict[str, list[Manifest]]) -> dict[str, list[str]]:
    """What is wrong with documents of no built-in kind, as `Kind/name: field: message`.

    Args:
        sets: Documents by any names; the answer is by the same ones. Many at once, since Node
            takes a second to start.
    """
    custom = [
        (name, one) for name, documents in sets.items() for one in documents if not is_builtin(one)
    ]
    by_node = [pair for pair in custom if _group(pair[1]) in OF_NODE]
    others = [pair for pair in custom if _group(pair[1]) not in OF_NODE]
    answer: dict[str, list[str]] = {name: [] for name in sets}
    for index, field, message in _node_faults([one for _, one in by_node]):
        name, one = by_node[index]
        answer[name].append(f"{called(one)}: {field}: {message}")
    for name, one in others:
        answer[name] += [f"{called(one)}: {field}: {text}" for field, text in _faults_of_one(one)]
    return answer


def _group(document: Manifest) -> str:
    return str(document["apiVersion"]).rpartition("/")[0]


def _faults_of_one(document: Manifest) -> Iterator[field_tables.Fault]:
    api_version, kind = document["apiVersion"], document["kind"]
    if api_version == "trainer.kubeflow.org/v1alpha1" and kind in OF_TRAINER:
        yield from _trainer_faults(document, OF_TRAINER[kind])
    elif (api_version, kind) in OF_KSERVE:
        folder = TOOLS.parent / "kserve-models" / "kserve" / "models"
        if not folder.is_dir():
            miss("KServe's models are missing: run scripts/install_tools.sh")
        tables = field_tables.kserve_tables(folder)
        yield from field_tables.faults(document, OF_KSERVE[api_version, kind], tables)
    elif (api_version, kind) == ("ray.io/v1", "RayJob"):
        tables = field_tables.written_tables(Path(__file__).with_name("ray_fields.yaml"))
        yield from field_tables.faults(document, kind, tables)
    else:
        yield "", f"nothing describes {api_version} {kind}"


def _trainer_faults(document: Manifest, model: Any) -> Iterator[field_tables.Fault]:
    """Faults by the models of Kubeflow's trainer, and what these skip without a word."""
    try:
        kept = model.from_dict(document).to_dict()
    except ValidationError as error:
        for one in error.errors():
            yield "".join(f"/{part}" for part in one["loc"]), one["msg"]
        return
    yield from _lost(document, kept, "")


def _lost(given: Any, kept: Any, path: str) -> Iterator[field_tables.Fault]:
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                yield f"{path}/{key}", "is an unknown field"
            else:
                yield from _lost(value, kept[key], f"{path}/{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, pair in enumerate(zip(given, kept, strict=True)):
            yield from _lost(*pair, f"{path}/{index}")
    elif given != kept:
        yield path, f"was read as {kept!r}"


def _node_faults(documents: list[Manifest]) -> list[tuple[int, str, str]]:
    """Index, field and message by the npm models of KEDA and the Prometheus operator."""
    if not documents:
        return []
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
