"""Judges custom resources by tables of fields: KServe's published models, and ours of RayJob.

Types are written as OpenAPI's Python generator writes them: `str`, `list[V1Container]`,
`dict(str, str)`. Those of Kubernetes itself are looked up in its schemas.
"""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy import strict_schemas

Fault = tuple[str, str]


@dataclass(frozen=True)
class Field:
    """What one key of an object may hold."""

    type_name: str
    is_required: bool = False


Tables = dict[str, dict[str, Field]]

SCALARS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}


@functools.cache
def kserve_tables(folder: Path) -> Tables:
    """The tables in KServe's Python package, read and not imported: it would import a whole server.

    Args:
        folder: The package's folder of models.
    """
    tables: Tables = {}
    for path in folder.glob("v1*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                tables[node.name] = _fields_of(node, text)
    return tables


def _fields_of(node: ast.ClassDef, text: str) -> dict[str, Field]:
    literals = {
        target.id: ast.literal_eval(statement.value)
        for statement in node.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and target.id in ("openapi_types", "attribute_map")
    }
    # The generator refuses None in the setters of what is required.
    required = set(re.findall(r"Invalid value for `(\w+)`, must not be `None`", text))
    return {
        literals["attribute_map"][name]: Field(type_name, name in required)
        for name, type_name in literals["openapi_types"].items()
    }


def written_tables(path: Path) -> Tables:
    """Tables from a YAML file, where an exclamation mark behind a key says that it is required."""
    return {
        type_name: {
            key.removesuffix("!"): Field(field_type, key.endswith("!"))
            for key, field_type in fields.items()
        }
        for type_name, fields in yaml.safe_load(path.read_text(encoding="utf-8")).items()
    }


def faults(value: Any, type_name: str, tables: Tables, path: str = "") -> Iterator[Fault]:
    """Where a value is not of its type, as pairs of field and message."""
    if type_name in tables:
        yield from _object_faults(value, tables[type_name], tables, path)
    elif match := re.fullmatch(r"list\[(.+)\]", type_name):
        yield from _container_faults(value, list, match[1], tables, path)
    elif match := re.fullmatch(r"dict\(str, (.+)\)", type_name):
        yield from _container_faults(value, dict, match[1], tables, path)
    elif match := re.fullmatch(r"one of (.+)", type_name):
        if value not in match[1].split():
            yield path, f"must be {type_name}"
    elif type_name in SCALARS:
        # A bool is an int to Python, and not to an API.
        is_bool = isinstance(value, bool)
        if not isinstance(value, SCALARS[type_name]) or is_bool != (type_name == "bool"):
            yield path, f"must be {type_name}"
    else:
        inner = strict_schemas.faults_of_type(type_name, value)
        if inner is None:
            inner = [("", f"nothing describes the type {type_name}")]
        for place, message in inner:
            yield path + place, message


def _container_faults(
    value: Any, kind: type[Any], item_type: str, tables: Tables, path: str
) -> Iterator[Fault]:
    if not isinstance(value, kind):
        yield path, f"must be a {kind.__name__}"
        return
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield from faults(item, item_type, tables, f"{path}/{key}")


def _object_faults(
    value: Any, fields: dict[str, Field], tables: Tables, path: str
) -> Iterator[Fault]:
    if not isinstance(value, dict):
        yield path, "must be a mapping"
        return
    for key, field in fields.items():
        if field.is_required and key not in value:
            yield path, f"must have {key}"
    for key, item in value.items():
        if key in fields:
            yield from faults(item, fields[key].type_name, tables, f"{path}/{key}")
        else:
            yield f"{path}/{key}", "is an unknown field"
