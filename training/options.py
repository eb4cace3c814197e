"""Options of a job: the fields of a dataclass, which its function is called with.

argparse reads the words of the command line by the fields' types, pydantic the values.
"""

import argparse
from dataclasses import MISSING, field, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def option(text: str, default: Any = MISSING, *, flag: str = "", **settings: Any) -> Any:
    """A field of a dataclass that is an option; it is required without a default.

    Args:
        text: For the help.
        default: Is named in the help if it is a value.
        flag: Other than "--" and the field's name.
        settings: Of argparse, such as `choices`.
    """
    if default not in (MISSING, None, False, ()):
        values = default if isinstance(default, tuple) else (default,)
        text = f"{text} (default {' '.join(map(str, values))})"
    return field(default=default, metadata={"help": text, "flag": flag, **settings})


def argument(text: str, **settings: Any) -> Any:
    """A required field that is given without a flag."""
    return option(text, flag="positional", **settings)


def add_options(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """Declare the fields of a dataclass as options; those that are not given stay out."""
    hints = get_type_hints(kind)
    for item in fields(kind):
        settings = {**_form(hints[item.name]), **item.metadata}
        flag = settings.pop("flag") or f"--{item.name.replace('_', '-')}"
        if flag == "positional":
            parser.add_argument(item.name, **settings)
        else:
            settings["required"] = item.default is MISSING
            parser.add_argument(flag, dest=item.name, default=argparse.SUPPRESS, **settings)


def _form(kind: Any) -> dict[str, Any]:
    """The words of an option of this type: a flag, one of several, a number of them, or one."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    if kind is bool:
        return {"action": "store_true"}
    if get_origin(kind) is Literal:
        return {"choices": parts}
    if get_origin(kind) is not tuple:
        return _form(parts[0]) if parts else {}
    if parts[-1] is not Ellipsis:
        return {"nargs": len(parts)}
    several = _form(parts[0])
    if several.get("nargs"):
        return several | {"action": "append"}
    return several | {"nargs": "+", "action": "extend"}
