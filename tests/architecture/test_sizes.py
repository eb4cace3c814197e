"""Functions stay short."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

MAX_FUNCTION_LINES = 50

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(path: Path) -> Iterator[FunctionNode]:
    """Functions and methods of one file, including nested ones."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, FunctionNode):
            yield node


def num_code_lines(function: FunctionNode) -> int:
    """Count lines from `def` to the end, without the docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


@pytest.mark.slow
def test_no_function_is_too_long(project_root: Path, python_files: list[Path]) -> None:
    too_long = [
        f"{path}:{function.lineno} {function.name} ({num_code_lines(function)} lines)"
        for path in python_files
        for function in functions_of(project_root / path)
        if num_code_lines(function) > MAX_FUNCTION_LINES
    ]
    assert not too_long, f"split these into named steps: {too_long}"


def test_the_docstring_is_not_counted() -> None:
    documented = ast.parse(
        'def f() -> int:\n    """One.\n\n    Two.\n    """\n    return 1\n'
    ).body[0]
    assert isinstance(documented, ast.FunctionDef)
    assert num_code_lines(documented) == 2
