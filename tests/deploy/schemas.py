"""Faults of documents by the published schemas and models of their kinds."""

import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import kubeflow_trainer_api.models as trainer
import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator

from tests.deploy.workloads import Manifest, called, operator_pods
from tests.tools import TOOLS, miss, run

# Node's first start on a busy machine takes most of it.
LIMIT_S = 120.0
# Two widespread versions, and the newest that the package has.
VERSIONS = ("1.30", "1.32", kubernetes_validate.latest_version())
# The groups that Kubernetes itself serves; other kinds are custom resources.
GROUPS = ("", "apps", "autoscaling", "batch", "policy", "networking.k8s.io")
PACKAGES = {
    "keda.sh": "keda",
    "gateway.networking.k8s.io": "gateway-api",
    "monitoring.coreos.com": "prometheus-operator",
}
# `nodenext` and `.mts` let Node run what the compiler has checked.
COMPILE = ("tsc", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022")
TABLES = yaml.safe_load(Path(__file__).with_name("operators.yaml").read_text(encoding="utf-8"))
TYPES = ("array", "boolean", "integer", "object", "string")


def is_builtin(document: Manifest) -> bool:
    """Whether Kubernetes serves this kind without an operator."""
    return document["apiVersion"].rpartition("/")[0] in GROUPS


def faults_of_builtin(documents: list[Manifest]) -> Iterator[str]:
    """Faults of built-in kinds, and of pods within custom resources, by any version's schemas."""
    for document in [*filter(is_builtin, documents), *operator_pods(documents)]:
        for version in VERSIONS:
            if fault := _fault(json.dumps(document), version):
                yield f"{called(document)} in {version}: {fault}"


@functools.cache
def _fault(document: str, version: str) -> str:
    """The first fault of a document, given as JSON: cached, since most documents recur."""
    try:
        kubernetes_validate.validate(json.loads(document), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return str(error.message)
    return ""


def faults_of_custom(documents: Iterable[Manifest], folder: Path) -> Iterator[str]:
    """Faults of all custom resources; `folder` is empty."""
    custom = [one for one in documents if not is_builtin(one)]
    by_npm = [one for one in custom if one["apiVersion"].partition("/")[0] in PACKAGES]
    yield from _faults_by_npm(by_npm, folder)
    for one in (one for one in custom if one not in by_npm):
        if one["kind"] == "TrainJob":
            # The models silently ignore unknown fields.
            if trainer.TrainerV1alpha1TrainJob.from_dict(one).to_dict() != one:
                yield f"{called(one)}: has unknown fields, or values of another type"
        else:
            for error in Draft202012Validator(_schema(TABLES[one["kind"]])).iter_errors(one):
                yield f"{called(one)}: {error.json_path}: {error.message}"


def _schema(table: Any) -> Manifest:
    """The JSON schema of a table in `operators.yaml`."""
    if isinstance(table, list):
        return {"type": "array", "items": _schema(table[0])}
    if isinstance(table, dict):
        fields = {key.rstrip("!"): _schema(inner) for key, inner in table.items()}
        needed = [key.rstrip("!") for key in table if key.endswith("!")]
        closed = {"properties": fields, "required": needed, "additionalProperties": False}
        return {"type": "object", **closed}
    return {"type": table} if table in TYPES else {"enum": table.split("|")}


def _faults_by_npm(documents: list[Manifest], folder: Path) -> Iterator[str]:
    """Faults by npm's models: their validators let unknown fields pass, TypeScript does not."""
    models = TOOLS.parent / "kubernetes-models" / "node_modules"
    if not models.is_dir():
        miss("the models of custom resources are missing: run scripts/install_tools.sh")
    (folder / "node_modules").symlink_to(models)
    with (folder / "documents.mts").open("w", encoding="utf-8") as source:
        for n, one in enumerate(documents):
            group, kind = one["apiVersion"], one["kind"]
            path = f"@kubernetes-models/{PACKAGES[group.partition('/')[0]]}/{group}/{kind}"
            source.write(f'import * as m{n} from "{path}";\n')
            source.write(f"const d{n}: m{n}.I{kind} = {json.dumps(one)};\n")
            source.write(f"new m{n}.{kind}(d{n}).validate();\n")
    for program, *arguments in ((*COMPILE, "documents.mts"), ("node", "documents.mjs")):
        ended = run(program, *arguments, timeout_s=LIMIT_S, cwd=folder)
        if ended.returncode:
            yield ended.stdout + ended.stderr
            return
