"""Judges custom resources by tables of fields: KServe's published models, and ours of RayJob.

Types are written as OpenAPI's Python generator writes them: `str`, `list[V1Container]`,
`dict(str, str)`. The schemas of Kubernetes describe its own types.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.deploy import strict_schemas

Fault = tuple[str, str]
# By type and key: the value's type; `!` after a key marks a required one.
Tables = dict[str, dict[str, str]]

SCALARS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}


@functools.cache
def kserve_tables(folder: Path) -> Tables:
    """Tables of the models in KServe's package; importing it would import a whole server."""
    tables: Tables = {}
    for path in folder.glob("v1*.py"):
        text = path.read_text(encoding="utf-8")
        # The generated setters of required fields refuse None.
        required = set(re.findall(r"Invalid value for `(\w+)`, must not be `None`", text))
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                types, keys = (
                    ast.literal_eval(statement.value)
                    for name in ("openapi_types", "attribute_map")
                    for statement in node.body
                    if isinstance(statement, ast.Assign)
                    and isinstance(statement.targets[0], ast.Name)
                    and statement.targets[0].id == name
                )
                tables[node.name] = {
                    keys[name] + ("!" if name in required else ""): type_name
                    for name, type_name in types.items()
                }
    return tables


def faults(value: Any, type_name: str, tables: Tables, path: str = "") -> Iterator[Fault]:
    """Where a value is not of its type, as pairs of field and message."""
    if type_name in tables:
        yield from _object_faults(value, tables[type_name], tables, path)
    elif match := re.fullmatch(r"list\[(.+)\]|dict\(str, (.+)\)", type_name):
        is_list = match[1] is not None
        if not isinstance(value, list if is_list else dict):
            yield path, f"must be {type_name}"
            return
        items: Any = enumerate(value) if isinstance(value, list) else value.items()
        for key, item in items:
            yield from faults(item, match[1] or match[2], tables, f"{path}/{key}")
    elif match := re.fullmatch(r"one of (.+)", type_name):
        if value not in match[1].split():
            yield path, f"must be {type_name}"
    elif type_name in SCALARS:
        # A bool is an int in Python, but not in an API.
        is_bool = isinstance(value, bool)
        if not isinstance(value, SCALARS[type_name]) or is_bool != (type_name == "bool"):
            yield path, f"must be {type_name}"
    else:
        inner = strict_schemas.faults_of_type(type_name, value)
        for place, message in [("", f"unknown type {type_name}")] if inner is None else inner:
            yield path + place, message


def _object_faults(value: Any, keys: dict[str, str], tables: Tables, path: str) -> Iterator[Fault]:
    if not isinstance(value, dict):
        yield path, "must be a mapping"
        return
    for key in (key.removesuffix("!") for key in keys if key.endswith("!")):
        if key not in value:
            yield path, f"must have {key}"
    for key, item in value.items():
        type_name = keys.get(key) or keys.get(f"{key}!")
        if type_name:
            yield from faults(item, type_name, tables, f"{path}/{key}")
        else:
            yield f"{path}/{key}", "is an unknown field"
