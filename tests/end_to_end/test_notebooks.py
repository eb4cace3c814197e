"""The notebooks of examples/ run as a whole, and are stored with outputs.

`STORE_NOTEBOOKS=1 python -m pytest tests/end_to_end/test_notebooks.py` stores those of this run.
"""

import os
import re
from pathlib import Path
from typing import Any, Final

import nbformat
import pytest
from nbclient import NotebookClient

from tests.processes.server import ROOT

# Of one cell; the longest one trains for a minute where nothing else runs.
LIMIT_S = 600
STORES: Final = os.environ.get("STORE_NOTEBOOKS") == "1"
MAX_STORED_BYTES: Final = 400_000
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# What the cells print, in this order.
PRINTED = {
    "distil_your_own_student": r"The student is in .*step 40: loss [01]\.\d+.*teacher: 0\.\d+",
    "embed_and_search": r"\(15, 768\).*fruit\n.*dog\n.*room\n",
    "segment": r"piano: 0.0%.*1 burger: .*2 sunflower: .*3 open book: .*\d instances",
}


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    stored = [kinds_of(cell) for cell in notebook.cells]
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
        variables["TIPSERVE_URL"] = request.getfixturevalue("bundled_service").rest
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=LIMIT_S, resources=resources, coalesce_streams=True)
    client.execute(env=variables)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    assert re.search(PRINTED[path.stem], printed, re.DOTALL), printed
    if STORES:
        store(notebook, path)
    else:
        assert stored == [kinds_of(cell) for cell in notebook.cells]


def kinds_of(cell: Any) -> set[str]:
    """What the outputs of a cell are, apart from warnings and progress."""
    found = {output.get("name", output.output_type) for output in cell.get("outputs", ())}
    return found - {"stderr"}


def store(notebook: Any, path: Path) -> None:
    """Store a notebook that has run, with one form of each image and mask."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        for output in cell.get("outputs", ()):
            for kept, left_out in (("image/jpeg", "image/png"), ("text/html", "text/plain")):
                if kept in output.get("data", ()):
                    output.data.pop(left_out, None)
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_names_no_folder_of_its_writer(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < MAX_STORED_BYTES
    assert not re.search(r"/(home|root|tmp|work)/|127\.0\.0\.1", text)


def test_each_notebook_is_known() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(PRINTED)
