"""Import contracts and import style."""

import ast
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOMS = ("service", "model", "training")


def has_bare_room_import(source: str) -> bool:
    """Whether a top-level package is bound by name: `import model`, `import model.vision`."""
    return any(
        isinstance(node, ast.Import)
        and any(alias.name.split(".")[0] in ROOMS and alias.asname is None for alias in node.names)
        for node in ast.walk(ast.parse(source))
    )


def test_import_contracts_hold(project_root: Path) -> None:
    command = [str(Path(sysconfig.get_path("scripts")) / "lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=project_root, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_no_room_is_imported_by_its_bare_name(project_root: Path, python_files: list[Path]) -> None:
    offenders = [
        path.as_posix()
        for path in python_files
        if has_bare_room_import((project_root / path).read_text(encoding="utf-8"))
    ]
    assert not offenders, (
        f"write `from model.x import Y`; a local `model` would hide it: {offenders}"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import model", True),
        ("import model.vision", True),
        ("def f():\n    import training", True),
        ("from model.text import fill", False),
        ("import modelling", False),
    ],
)
def test_bare_imports_are_recognised(source: str, expected: bool) -> None:
    assert has_bare_room_import(source) is expected


def test_folders_that_are_no_packages_stay_so(project_files: list[Path]) -> None:
    # proto/__init__.py would hide proto-plus; tests/service/__init__.py would hide service.
    offenders = [
        path.as_posix()
        for path in project_files
        if path.name == "__init__.py"
        and path.parts[0] in {"tests", "proto", "deploy", "benchmarks"}
    ]
    assert not offenders


def test_proto_and_deploy_hold_no_python(project_files: list[Path]) -> None:
    assert not [p for p in project_files if p.suffix == ".py" and p.parts[0] in {"proto", "deploy"}]


BLOCKED = (
    "opentelemetry.sdk",
    "torch",
    "torchvision",
    "transformers",
    "huggingface_hub",
    "onnx",
    "scipy",
    "training",
)
IMPORT_HOOK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if any(f"{{name}}.".startswith(f"{{blocked}}.") for blocked in {BLOCKED!r}):
            raise AssertionError("the serving path imported " + name)
sys.meta_path.insert(0, Block())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    ["service.server", "service.__main__", "service.commands.embed", "model.runtime.load"],
)
def test_serving_needs_neither_torch_nor_transformers(project_root: Path, module: str) -> None:
    program = f"{IMPORT_HOOK}\nimport importlib\nimportlib.import_module({module!r})\n"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=project_root, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
