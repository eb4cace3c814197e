"""Forbidden texts, and pages that must agree with the code."""

import re
from pathlib import Path

import pytest

from service.monitoring.metrics import READINGS, Metrics

# Spelt so that this file does not match itself. KServe puts models into /mnt/models on any machine.
LOCAL_PATHS = re.compile(rb"(?<![\w.}])/(?:home|root|work|Users|mnt(?!/models\b))/\w")
REGISTRY_HOSTS = re.compile(
    rb"\b(?:pypi\.org|pythonhosted\.org|registry\.npmjs\.org|deb\.debian\.org|npmmirror\.com)\b"
)
TEST_COMMAND = re.compile(r"^python3 -m venv .*scripts/check\.sh --all$", re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [LOCAL_PATHS, REGISTRY_HOSTS], ids=["path", "registry"])
def test_no_file_names_a_machine(
    project_root: Path, project_files: list[Path], pattern: re.Pattern[bytes]
) -> None:
    this_file = Path(__file__).resolve()
    found = {
        path.as_posix(): match.group()
        for path in project_files
        if (project_root / path) != this_file
        and (match := pattern.search((project_root / path).read_bytes()))
    }
    assert not found


def test_ci_runs_the_command_of_the_readme(project_root: Path) -> None:
    readme = TEST_COMMAND.findall((project_root / "README.md").read_text(encoding="utf-8"))
    ci = TEST_COMMAND.findall((project_root / ".ci" / "run").read_text(encoding="utf-8"))
    assert len(readme) == 1
    assert readme == ci


@pytest.mark.parametrize("page", ["tests/README.md", "docs/clients.md"])
def test_the_tests_that_a_page_names_exist(project_root: Path, page: str) -> None:
    folder = project_root / "tests"
    named = re.findall(
        r"`([\w/]+\.py)(?:::(\w+))?`", (project_root / page).read_text(encoding="utf-8")
    )
    assert len(named) > 20
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (folder / file).exists()
        or (
            name
            and not re.search(
                rf"(def {name}\(|^{name} = )", (folder / file).read_text(), re.MULTILINE
            )
        )
    ]
    assert not missing


def test_the_notice_names_the_sources_and_has_the_mit_licence(project_root: Path) -> None:
    text = (project_root / "NOTICE").read_text(encoding="utf-8")
    for owner in (
        "2021 OpenAI, MIT (below",
        "2019 Mu-An Chiou, MIT (below)",
        "google-deepmind/tips",
    ):
        assert text.count(owner) == 1
    # MIT asks for the whole text with each copy.
    assert text.count("Permission is hereby granted, free of charge") == 1
    assert text.count("IN NO EVENT SHALL THE AUTHORS") == 1


def test_scripts_are_executable(project_root: Path, project_files: list[Path]) -> None:
    scripts = [path for path in project_files if path.suffix == ".sh" or path.parts[0] == ".ci"]
    assert scripts
    assert not [path for path in scripts if not (project_root / path).stat().st_mode & 0o100]


def test_file_names_say_what_is_inside(python_files: list[Path]) -> None:
    empty_words = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    assert not [path for path in python_files if path.stem in empty_words]


def test_the_operations_page_names_every_metric(project_root: Path) -> None:
    page = (project_root / "docs" / "operations.md").read_text(encoding="utf-8")
    named = {name.removesuffix("_total") for name in re.findall(r"`(tipserve_[a-z_]+)", page)}
    metrics = Metrics()
    metrics.record_first_ready()
    served = {*READINGS} | {family.name for family in metrics.registry.collect()}
    # Of service.workers.
    served |= {"tipserve_workers", "tipserve_workers_ready", "tipserve_worker_restarts"}
    assert named == {name for name in served if name.startswith("tipserve_")}


def test_the_api_page_names_every_rpc(project_root: Path) -> None:
    page = (project_root / "docs" / "api.md").read_text(encoding="utf-8")
    proto = project_root / "proto" / "tipserve" / "v1" / "encoder_service.proto"
    for rpc in re.findall(r"^  rpc (\w+)", proto.read_text(encoding="utf-8"), re.MULTILINE):
        assert f"`{rpc}`" in page


def test_every_error_code_of_the_troubleshooting_page_exists(project_root: Path) -> None:
    page = (project_root / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    _, _, after = page.partition("## A request is refused")
    rows = [
        row.split("|")
        for row in after.partition("\n## ")[0].splitlines()
        if row.startswith("|") and "`" in row
    ]
    named = {code for row in rows for code in re.findall(r"`(\w+)`", row[3])}
    sources = [
        path.read_text(encoding="utf-8") for path in (project_root / "service").rglob("*.py")
    ]
    codes = {code for text in sources for code in re.findall(r'code\w* ?= ?"(\w+)"', text)}
    assert len(named) > 25
    assert named <= codes
