"""Writes docs/configuration.md from the settings and their docstrings.

`python scripts/generate_configuration.py` writes the page; with `--check` it fails if the page is
out of date.
"""

import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from service.settings import Settings  # noqa: E402 (the script adds the repository to the path)

PAGE = ROOT / "docs" / "configuration.md"
# The first setting of each section, in the order of the class.
SECTIONS = {
    "model": "Models and runtimes",
    "watchdog_hang_limit_s": "Health checks",
    "host": "Addresses and routes",
    "max_batch_images": "Batches and queue",
    "max_image_bytes": "Limits and time-outs",
    "url_hosts": "Images by URL",
    "api_keys": "API keys",
    "tls_cert": "TLS",
    "log_level": "Logs and traces",
    "show_config": "Output",
}
INTRODUCTION = """\
# Configuration

Every setting is a flag (`--http-port 9000`) and an environment variable
(`TIPSERVE_HTTP_PORT=9000`). A flag overrides a variable. An unknown flag or `TIPSERVE_` variable is
an error. `tipserve serve --show-config` prints each setting with its value and source, with
secrets masked.

`scripts/generate_configuration.py` generates this page from `service/settings.py`."""


def _name_type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "list"
    if get_origin(annotation) in {Union, types.UnionType}:
        parts = [part for part in get_args(annotation) if part is not types.NoneType]
        return ", ".join(map(_name_type, parts))
    if get_args(annotation):  # annotated
        return _name_type(get_args(annotation)[0])
    names = {int: "integer", float: "number", bool: "boolean", Path: "path"}
    return names.get(annotation, "text")


def _show_default(field: Any) -> str:
    value = field.default
    if value is PydanticUndefined or value is None or value == ():
        return ""
    if isinstance(value, tuple):
        value = ",".join(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def render() -> str:
    """The whole page."""
    if missing := SECTIONS.keys() - Settings.model_fields.keys():
        raise ValueError(f"SECTIONS names settings that do not exist: {', '.join(sorted(missing))}")
    lines = [INTRODUCTION]
    for name, field in Settings.model_fields.items():
        if name in SECTIONS:
            lines += ["", f"## {SECTIONS[name]}", "", "| flag | values | default | meaning |"]
            lines += ["| --- | --- | --- | --- |"]
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        flag = f"`--{name.replace('_', '-')}`" if name != "api_keys" else "`TIPSERVE_API_KEYS`"
        kind = _name_type(field.annotation)
        lines.append(f"| {flag} | {kind} | {_show_default(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or compare it."""
    page = render()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page:
        return 0
    print("docs/configuration.md is out of date: run python scripts/generate_configuration.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
