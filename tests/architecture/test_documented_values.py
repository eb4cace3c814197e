"""Command lines, settings and statuses in the documentation are those of the programs.

A command line may leave out arguments, because a page often names a command only.
"""

import importlib.util
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest
from cyclopts import MissingArgumentError
from pydantic import ValidationError

from model.conversion import commands as model_commands
from service.rest.errors import BAD_REQUEST, STATUS
from service.settings import PREFIX, Settings, load_settings
from tipserve_cli import program
from training.__main__ import build_parser

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = ("*.md", "docs/*.md", "deploy/**/*.md", "tests/*.md", "clients/python/*.md")
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for pattern in PATTERNS for path in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^ *```.*?\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(
    r"(?:^|&& |\| |; )(?:\w+=\S+ )*(tipserve|python3? -m (?:service|model|training)) ([^|;&]+)"
)
MODULE = re.compile(r"python3? -m ((?:benchmarks|model|service|training)[\w.]*)")
VARIABLE = re.compile(rf"\b{PREFIX}([A-Z_]+)=([^\s`\"'),]+)")
SETTING = re.compile(r"`([a-z_]+)=([^`\s]+)`")
# A row that says what to set: `workers` | `4` on a large machine.
ADVICE = re.compile(r"^\| `([a-z_]+)` \| `([^`]+)`", re.MULTILINE)
CELL_STATUS = re.compile(r"(?<=\| )([45]\d\d)(?= \||[;,] | with )")
PROSE_STATUS = re.compile(r"\b(?:with|gets?|answers?|returns?|status) ([45]\d\d)(?=[.,:;)]| [a-z])")


def text_of(page: str) -> str:
    """The page, without the table of settings that went."""
    return (ROOT / page).read_text(encoding="utf-8").partition("these settings went")[0]


def command_lines(page: str) -> Iterator[tuple[str, list[str]]]:
    """The programs that a page runs or names, with their arguments."""
    text = text_of(page)
    blocks = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    for line in (*blocks, *INLINE.findall(BLOCK.sub("", text))):
        for name, arguments in COMMAND.findall(line):
            yield name, shlex.split(arguments, comments=True)


def raise_message(_: ArgumentParser, message: str) -> NoReturn:
    raise ValueError(message)


def parse(name: str, arguments: list[str]) -> None:
    """Parse a command line as its program does; arguments may be missing."""
    if name.endswith("training"):
        try:
            build_parser(arguments[0]).parse_args(arguments)
        except ValueError as error:
            if "arguments are required" not in str(error):
                raise
    elif name.endswith("service") or arguments[0] == program.SERVE:
        load_settings([one for one in arguments if one != program.SERVE], {})
    else:
        app = program.new_app() if name == "tipserve" else model_commands.new_app()
        with suppress(MissingArgumentError):
            app.parse_args(arguments, print_error=False, exit_on_error=False)


@pytest.mark.parametrize("page", [page for page in PAGES if [*command_lines(page)]])
def test_a_command_line_of_a_page_is_accepted(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArgumentParser, "error", raise_message)
    for name, arguments in command_lines(page):
        # JOB and COMMAND stand for any; "--help" ends a program.
        if arguments[0].isupper() or "--help" in arguments:
            continue
        try:
            parse(name, arguments)
        except Exception as error:
            error.add_note(f"{page}: {name} {shlex.join(arguments)}")
            raise


@pytest.mark.parametrize("page", PAGES)
def test_a_module_that_a_page_runs_exists(page: str) -> None:
    # A number of an earlier commit has the command of that commit.
    lines = [one for one in text_of(page).splitlines() if not re.search("commit [0-9a-f]{8}", one)]
    named = set(MODULE.findall("\n".join(lines)))
    assert [name for name in named if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_value_of_a_setting_is_accepted(page: str) -> None:
    text = text_of(page)
    given = [(name.lower(), value) for name, value in VARIABLE.findall(text)]
    given += [pair for pair in SETTING.findall(text) if pair[0] in Settings.model_fields]
    if page == "docs/operations.md":
        given += ADVICE.findall(text.partition("## ")[0])
    refused = []
    for name, value in given:
        try:
            load_settings([], {f"{PREFIX}{name.upper()}": value})
        except ValidationError as error:
            # An error without a name is of settings that need each other.
            refused += [(name, value) for one in error.errors() if one["loc"]]
    assert refused == []


@pytest.mark.parametrize("page", PAGES)
def test_a_status_is_one_that_a_caller_can_get(page: str) -> None:
    text = text_of(page)
    named, given = PROSE_STATUS.findall(text), {*STATUS.values(), BAD_REQUEST}
    if page in {"docs/api.md", "docs/troubleshooting.md"}:  # about the server alone
        named += CELL_STATUS.findall(text)
    else:
        proxy = (ROOT / "deploy/proxy/nginx.conf").read_text(encoding="utf-8")
        given |= {*map(int, re.findall(r"\b[45]\d\d\b", proxy))}
    assert {*map(int, named)} <= given
