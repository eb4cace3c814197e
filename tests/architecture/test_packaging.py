"""Dependencies and contents of the distribution."""

import ast
import re
import shutil
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from model.package import open_package
from tests.tools import run
from training.pretrained.weights import FILES

ROOMS = ("service", "model", "training", "tipserve_cli", "connectors")
SCRIPT_ROOMS = ("tests", "benchmarks")
# The Python client: its own distribution below clients/python, also included in this one.
CLIENT = "tipserve_client"
# PyPI accepts 100 MB.
MAX_WHEEL_BYTES = 85_000_000
LIMIT_S = 300.0
# Extras that each top-level package may import from, in addition to the core dependencies.
EXTRAS_OF_ROOM = {
    "service": ("gpu", "otel"),
    "model": ("cpu", "gpu", "torch", "convert", "heif", "stores"),
    "training": ("torch", "convert", "train", "captions"),
    "tipserve_cli": ("cli", "bulk", "evaluate"),
    "connectors": ("cvat",),
    "tests": ("cli", "cpu", "torch", "convert", "train", "evaluate", "otel", "parse", "dev"),
    "benchmarks": ("cpu", "gpu", "torch", "convert", "train", "otel", "dev"),
}
# Import names that installed metadata does not give: many distributions share `google`, so a second
# level is needed, and those of the extra `gpu` are not installed in tests.
PROVIDERS = {
    "cuda": "cuda-python",
    "cvat_sdk": "cvat-cli",
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "pynvml": "nvidia-ml-py",
    "tensorrt": "tensorrt-cu13",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings",
}


def canonical(name: str) -> str:
    """Normalise a distribution name as package indexes do."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(project_root: Path, extras: tuple[str, ...]) -> set[str]:
    """Distributions in the core dependencies and in these extras."""
    document = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))
    table = document["project"]
    lines: list[str] = list(table["dependencies"])
    for extra in extras:
        lines += table["optional-dependencies"][extra]
    return {canonical(Requirement(line).name) for line in lines}


def _imported(code: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


def foreign_roots(path: Path) -> set[str]:
    """Top-level names of all imports beyond the standard library; two levels of google."""
    names = _imported(path.read_text(encoding="utf-8"))
    roots = {".".join(n.split(".")[: 2 if n.startswith("google.") else 1]) for n in names}
    return roots - set(sys.stdlib_module_names)


@pytest.mark.slow
@pytest.mark.parametrize("room", sorted(EXTRAS_OF_ROOM))
def test_what_a_room_imports_is_declared(
    project_root: Path, python_files: list[Path], room: str
) -> None:
    allowed = declared(project_root, EXTRAS_OF_ROOM[room])
    providers = {**packages_distributions(), **{name: [PROVIDERS[name]] for name in PROVIDERS}}
    missing = [
        f"{path}: {root}"
        for path in python_files
        if path.parts[0] == room
        for root in sorted(foreign_roots(project_root / path) - {*ROOMS, *SCRIPT_ROOMS, CLIENT})
        if not allowed & {canonical(name) for name in providers.get(root, [root])}
    ]
    assert not missing, f"declare these in pyproject.toml or remove the imports: {missing}"


def test_the_client_imports_what_it_declares_and_nothing_of_the_service(
    project_root: Path, python_files: list[Path]
) -> None:
    text = (project_root / "clients" / "python" / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    declared_names = {canonical(Requirement(line).name) for line in project["dependencies"]}
    assert declared_names == {
        "googleapis-common-protos", "grpcio", "httpx2", "numpy", "protobuf"
    }  # fmt: skip
    files = [path for path in python_files if path.parts[0] == "clients"]
    imported = {root for path in files for root in foreign_roots(project_root / path)}
    assert len(files) > 10
    needed = {"google.protobuf", "google.rpc", "grpc", "httpx2", "numpy", CLIENT}
    # Of the extra `draw`; test_package.py imports the client without Pillow.
    assert imported == needed | {"PIL", "matplotlib"}


def test_serving_declares_neither_torch_nor_transformers(project_root: Path) -> None:
    assert not declared(project_root, ("cpu", "gpu")) & {"torch", "torchvision", "transformers"}
    assert declared(project_root, ("cpu",)) - declared(project_root, ("cpu-onnx",)) == {"openvino"}


def test_every_extra_that_a_text_names_exists(
    project_root: Path, project_files: list[Path]
) -> None:
    document = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))
    extras = document["project"]["optional-dependencies"].keys()
    unknown = [
        f"{path}: {extra}"
        for path in project_files
        if path.suffix in {".md", ".py", ".sh", ".yaml"}
        for names in re.findall(
            r"tipserve\[([\w,-]+)\]|EXTRA=([\w,-]+)", _text(project_root / path)
        )
        for extra in ",".join(filter(None, names)).split(",")
        if extra not in extras
    ]
    assert not unknown


def test_no_page_installs_the_client_beside_the_server(project_root: Path) -> None:
    # Both distributions own the client's files, so that removing one breaks the other.
    install = "pip install ./clients/python"
    for page in ("README.md", "docs/quickstart.md"):
        assert install not in _text(project_root / page), page
    for page in ("docs/clients.md", "clients/python/README.md"):
        assert install in _text(project_root / page)
        assert re.search(r"removing\s+one", _text(project_root / page)), page


def test_the_readme_needs_only_what_its_first_line_installs(project_root: Path) -> None:
    blocks = re.findall(r"```(bash|python)\n(.*?)```", _text(project_root / "README.md"), re.DOTALL)
    lines = [line for kind, text in blocks if kind == "bash" for line in text.splitlines()]
    programs = {part.split()[0] for line in lines for part in re.split(r"\|(?= )", line)}
    assert programs == {"curl", "cut", "tipserve"}
    code = "\n".join(text for kind, text in blocks if kind == "python")
    assert {name.partition(".")[0] for name in _imported(code)} <= {"numpy", CLIENT}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


@pytest.mark.slow
def test_the_wheel_is_far_from_an_indexs_limit_and_serves(
    project_root: Path, project_files: list[Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    for path in project_files:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project_root / path, source / path)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = ["--no-index", "--no-deps", "--no-build-isolation", f"--wheel-dir={tmp_path}"]
    assert run(*pip, "wheel", *options, str(source), timeout_s=LIMIT_S).returncode == 0
    (wheel,) = tmp_path.glob("tipserve-*.whl")
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    for name in ("bundled", "bundled_student"):
        opened = open_package(tmp_path / "installed" / "model" / name)
        assert {"onnx/vision_model.onnx", "onnx/text_model.onnx"} <= opened.manifest.files.keys()
    for package in (*ROOMS, CLIENT):
        assert (tmp_path / "installed" / package / "py.typed").is_file()


def test_every_python_folder_of_a_room_is_a_package(python_files: list[Path]) -> None:
    # Without __init__.py, `packages.find` would leave the folder out of the wheel.
    folders = {path.parent for path in python_files if path.parts[0] in ROOMS}
    packages = {path.parent for path in python_files if path.name == "__init__.py"}
    assert folders <= packages


def test_the_weights_of_others_are_pinned(project_root: Path) -> None:
    document = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))
    extra = document["project"]["optional-dependencies"]["train"]
    pinned = {canonical(r.name) for r in map(Requirement, extra) if "==" in str(r.specifier)}
    assert {canonical(package) for package in FILES} <= pinned
