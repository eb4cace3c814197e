"""Changes a configuration by lines such as "optim.muon_lr=2e-3": `--set` on the command line.

Works for any nested dataclass: names, types and choices are read from its fields.
"""

import ast
import dataclasses
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Config = TypeVar("Config")

_NONE_WORDS = ("none", "None")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One override: a setting, and its value as text."""

    key: str
    text: str


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Return a copy of a configuration with some settings changed.

    An element of a tuple is named by its index ("data.stages.0.until=0.5"), a tuple of plain values
    is written in Python syntax or with commas ("cls1=alt,keywords"), and "none" is None.

    Raises:
        ValueError: An unknown setting, a value of another type, or a line without "=".
    """
    for line in overrides:
        key, separator, text = line.partition("=")
        if not separator:
            raise ValueError(f"--set takes KEY=VALUE, not {line!r}")
        config = cast(
            "Config", _changed(config, type(config), key.split("."), _Line(key=key, text=text))
        )
    return config


def _changed(value: Any, kind: Any, path: list[str], line: _Line) -> Any:
    """`value`, or a copy of it with the part at `path` changed."""
    if not path:
        return _read(line, kind)
    if value is None:
        value = _empty(kind, line.key)
    name, rest = path[0], path[1:]
    if isinstance(value, tuple):
        return _changed_item(value, kind, path, line)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        before = line.key.split(".")[-len(path) - 1]
        raise ValueError(f"unknown setting {line.key!r}: {before!r} has no fields")
    names = [item.name for item in dataclasses.fields(value)]
    if name not in names:
        raise ValueError(f"unknown setting {line.key!r}: {name!r} is not one of {', '.join(names)}")
    kind = get_type_hints(type(value))[name]
    return dataclasses.replace(value, **{name: _changed(getattr(value, name), kind, rest, line)})


def _changed_item(value: tuple[Any, ...], kind: Any, path: list[str], line: _Line) -> Any:
    number, items = path[0], list(value)
    if not number.isdecimal() or int(number) >= len(items):
        raise ValueError(
            f"unknown setting {line.key!r}: {number!r} is not an index from 0 to {len(items) - 1}"
        )
    index = int(number)
    arguments = get_args(kind)
    item_kind = arguments[0] if arguments[-1:] == (Ellipsis,) else arguments[index]
    items[index] = _changed(items[index], item_kind, path[1:], line)
    return tuple(items)


def _empty(kind: Any, key: str) -> Any:
    """The default value of an optional dataclass."""
    for choice in _choices(kind):
        if dataclasses.is_dataclass(choice) and isinstance(choice, type):
            return choice()
    raise ValueError(f"unknown setting {key!r}: it has no fields")


def _choices(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _read(line: _Line, kind: Any) -> Any:
    """Parse a value of some type.

    Raises:
        ValueError: The text does not fit the type, or the type cannot be written in one line.
    """
    choices = _choices(kind)
    if type(None) in choices and line.text in _NONE_WORDS:
        return None
    for choice in choices:
        value = _read_as(line.text, choice)
        if value is not None:
            return value
    raise ValueError(f"{line.key} must be {_described(choices)}, not {line.text!r}")


def _read_as(text: str, kind: Any) -> Any:
    """A value of a single type; None if the text does not fit."""
    if get_origin(kind) is Literal:
        return next((choice for choice in get_args(kind) if str(choice) == text), None)
    if get_origin(kind) is tuple:
        return _read_tuple(text, get_args(kind))
    if kind is str:
        parsed = _parsed(text)
        return parsed if isinstance(parsed, str) else text
    if kind is Path:
        return Path(text)
    parsed = _parsed(text)
    if kind is float and isinstance(parsed, int) and not isinstance(parsed, bool):
        return float(parsed)
    return parsed if kind in (bool, int, float) and type(parsed) is kind else None


def _read_tuple(text: str, kinds: tuple[Any, ...]) -> tuple[Any, ...] | None:
    parsed = _parsed(text)
    if isinstance(parsed, (tuple, list)):
        texts = [item if isinstance(item, str) else repr(item) for item in parsed]
    else:
        texts = [part.strip() for part in text.split(",") if part.strip()]
    if kinds[-1:] == (Ellipsis,):
        kinds = (kinds[0],) * len(texts)
    if len(texts) != len(kinds):
        return None
    values = [_read_as(item, kind) for item, kind in zip(texts, kinds, strict=True)]
    return None if any(value is None for value in values) else tuple(values)


def _parsed(text: str) -> Any:
    """A Python literal; anything else is a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _described(choices: tuple[Any, ...]) -> str:
    """Description of the allowed values."""
    words = []
    for choice in choices:
        if get_origin(choice) is Literal:
            words.append(f"one of {get_args(choice)}")
        elif choice is type(None):
            words.append("none")
        elif dataclasses.is_dataclass(choice) and isinstance(choice, type):
            names = ", ".join(item.name for item in dataclasses.fields(choice))
            words.append(f"set field by field ({names})")
        elif get_origin(choice) is tuple:
            words.append(f"of type {str(choice).replace('typing.', '')}")
        else:
            words.append(f"of type {choice.__name__}")
    return " or ".join(words)
