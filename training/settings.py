"""Settings: their ranges, which pydantic checks, and `--set` lines such as "optim.muon_lr=2e-3".

Works for any nested dataclass: its fields give names and types.
"""

import ast
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

STRICT: Final = ConfigDict(extra="forbid")
Share = Annotated[float, Field(ge=0, le=1)]


def problems(error: ValidationError) -> list[tuple[str, str]]:
    """The setting, empty where several are at odds, and what is wrong with it."""
    return [
        (".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, "))
        for one in error.errors()
    ]


Config = TypeVar("Config")
SETTING: Final[dict[str, Any]] = {"flag": "--set", "metavar": "KEY=VALUE"}
"""Of the option that changes settings; see `training.options`."""


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Return a copy of a configuration with some settings changed.

    An element of a tuple is named by its index ("data.stages.0.until=0.5"), a tuple of plain values
    is written in Python syntax or with commas ("cls1=alt,keywords"), and "none" is None.

    Raises:
        ValueError: An unknown setting, a value of another type, or a line without "=".
    """
    for line in overrides:
        key, separator, _ = line.partition("=")
        if not separator:
            raise ValueError(f"--set takes KEY=VALUE, not {line!r}")
        config = cast("Config", _changed(config, type(config), key.split("."), line))
    return config


def _changed(value: Any, kind: Any, path: Sequence[str], line: str) -> Any:
    """`value`, or a copy of it with the part at `path` changed."""
    if not path:
        return _read(line, kind)
    name, rest = path[0], path[1:]
    unknown = f"unknown setting {line.partition('=')[0]!r}"
    if value is None:  # an optional dataclass starts at its defaults
        classes = [choice for choice in get_args(kind) if dataclasses.is_dataclass(choice)]
        value = cast("type[Any]", classes[0])() if classes else None
    if isinstance(value, tuple):
        if not name.isdecimal() or int(name) >= len(value):
            raise ValueError(f"{unknown}: {name!r} is no index below {len(value)}")
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        index, kinds = int(name), get_args(plain)
        item_kind = kinds[0] if kinds[-1] is Ellipsis else kinds[index]
        item = _changed(value[index], item_kind, rest, line)
        return (*value[:index], item, *value[index + 1 :])
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise ValueError(f"{unknown}: there is no {name!r} in a plain value")
    names = [item.name for item in dataclasses.fields(value)]
    if name not in names:
        raise ValueError(f"{unknown}: {name!r} is not one of {', '.join(names)}")
    kind = get_type_hints(type(value), include_extras=True)[name]
    changed = _changed(getattr(value, name), kind, rest, line)
    try:
        return dataclasses.replace(value, **{name: changed})
    except ValidationError as error:
        raise ValueError(f"--set {line}: {_reasons(error)}") from error


def _reasons(*errors: ValidationError) -> str:
    messages = [message for error in errors for _, message in problems(error)]
    return "; ".join(dict.fromkeys(messages))


def _read(line: str, kind: Any) -> Any:
    """The value of a line, as Python syntax, as text, or as a list with commas."""
    text = line.partition("=")[2]
    adapter, errors = TypeAdapter(kind), list[ValidationError]()
    items = tuple(part.strip() for part in text.split(",") if part.strip())
    for value in (_parsed(text), text, items):
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            errors.append(error)
    raise ValueError(f"--set {line}: {_reasons(*errors)}")


def _parsed(text: str) -> Any:
    """A Python literal; anything else is a string."""
    if text in ("none", "None"):
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
