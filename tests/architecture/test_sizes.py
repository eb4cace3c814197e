"""Functions stay short."""

import ast
from pathlib import Path

import pytest

MAX_FUNCTION_LINES = 50

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


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
        for function in ast.walk(ast.parse((project_root / path).read_text(encoding="utf-8")))
        if isinstance(function, FunctionNode) and num_code_lines(function) > MAX_FUNCTION_LINES
    ]
    assert not too_long, f"split these into named steps: {too_long}"
