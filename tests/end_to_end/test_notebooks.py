"""The notebooks of examples/ run as a whole, and are stored without outputs."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from nbclient import NotebookClient

from model.package import open_package

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

# Of one cell; the longest one trains for a minute where nothing else runs.
LIMIT_S = 600
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# What the cells print, in this order.
PRINTED = {
    "distil_your_own_student": r"The student is in .*step 40: loss [01]\.\d+.*teacher: 0\.\d+",
    "embed_and_search": r"\(15, 768\).*fruit\n.*dog\n.*room\n",
    "segment": r"1 burger: .*2 sunflower: .*3 book: .*\d instances",
}


def read(path: Path) -> Any:
    """A notebook, whose parts are attributes."""
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def bundled_service(run_service: Callable[..., Any]) -> Iterator["Service"]:
    """Service with the model that the notebooks describe."""
    with run_service(packages=(open_package(ROOT / "model" / "bundled"),)) as running:
        yield running


@pytest.fixture
def run_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a copy of a notebook, in a process that is ended; returns what its cells printed."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    folder = tmp_path / "examples"
    folder.mkdir()
    (tmp_path / "model").symlink_to(ROOT / "model")
    for path in (ROOT / "examples").iterdir():
        (folder / path.name).symlink_to(path)

    def run(path: Path, **variables: str) -> str:
        notebook = read(path)
        paths = os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python")])
        client = NotebookClient(
            notebook, timeout=LIMIT_S, resources={"metadata": {"path": str(folder)}}
        )
        client.execute(env={**os.environ, "PYTHONPATH": paths, **variables})
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        return "".join(output.get("text", "") for output in outputs)

    return run


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    path: Path, run_notebook: Callable[..., str], request: pytest.FixtureRequest
) -> None:
    variables = {}
    if "TIPSERVE_URL" in path.read_text(encoding="utf-8"):
        service: Service = request.getfixturevalue("bundled_service")
        variables["TIPSERVE_URL"] = f"http://127.0.0.1:{service.ports['http']}"
    printed = run_notebook(path, **variables)
    assert re.search(PRINTED[path.stem], printed, re.DOTALL), printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    cells = read(path).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_each_notebook_is_known() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(PRINTED)
