"""The notebooks of examples/ run as a whole, and are stored without outputs."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from nbclient import NotebookClient

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


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells), (
        "stored with outputs"
    )
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    folder = tmp_path / "examples"
    folder.mkdir()
    (tmp_path / "model").symlink_to(ROOT / "model")
    for one in (ROOT / "examples").iterdir():
        (folder / one.name).symlink_to(one)
    sources = os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python")])
    variables = {**os.environ, "PYTHONPATH": sources}
    if "TIPSERVE_URL" in path.read_text(encoding="utf-8"):
        service: Service = request.getfixturevalue("bundled_service")
        variables["TIPSERVE_URL"] = service.rest
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=LIMIT_S, resources=resources).execute(env=variables)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    assert re.search(PRINTED[path.stem], printed, re.DOTALL), printed


def test_each_notebook_is_known() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(PRINTED)
