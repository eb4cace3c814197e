"""Import style, and imports of the serving path. Contracts: import-linter, in scripts/check.sh."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = (
    *("opentelemetry.sdk", "torch", "torchvision", "transformers"),
    *("huggingface_hub", "onnx", "scipy", "training"),
)
PROGRAM = f"""
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if any(f"{{name}}.".startswith(f"{{blocked}}.") for blocked in {BLOCKED!r}):
            raise AssertionError("the serving path imported " + name)
sys.meta_path.insert(0, Block())
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


def test_folders_that_are_no_packages_stay_so(project_files: list[Path]) -> None:
    # proto/__init__.py would hide proto-plus; tests/service/__init__.py would hide service.
    scripts, no_python = {"tests", "benchmarks"}, {"proto", "deploy"}
    assert not [
        path
        for path in project_files
        if (path.name == "__init__.py" and path.parts[0] in scripts)
        or (path.suffix == ".py" and path.parts[0] in no_python)
    ]


def test_promises_know_nothing_of_the_service(project_root: Path) -> None:
    files = (project_root / "tests" / "promises").glob("*.py")
    assert not [
        path for path in files if re.search(r"^\s*(from|import) service", path.read_text(), re.M)
    ]


def test_tests_import_no_benchmark(project_root: Path, python_files: list[Path]) -> None:
    others = [
        path
        for path in python_files
        if path.parts[0] == "tests" and path.parts[1] not in {"benchmarks", "architecture"}
    ]
    texts = {path: (project_root / path).read_text(encoding="utf-8") for path in others}
    assert not [
        path for path, text in texts.items() if re.search(r"^(from|import) benchm", text, re.M)
    ]


@pytest.mark.slow
def test_serving_needs_neither_torch_nor_transformers(project_root: Path) -> None:
    modules = [
        "model.runtime.load",
        "service.server",
        "service.__main__",
        "tipserve_cli.bulk.rows",
        "tipserve_cli.local",
    ]
    command = [sys.executable, "-c", PROGRAM, *modules]
    result = subprocess.run(command, cwd=project_root, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
