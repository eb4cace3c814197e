"""Inputs are found in one order, and split the same way each time."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.bulk.inputs import InputError, find_inputs


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "sub/c.webp", ".hidden.jpg", "notes.txt", "_errors/x.jpg"):
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return tmp_path / "tree"


def paths(tree: Path, *named: str, lines: tuple[str, ...] = ()) -> list[str]:
    inputs = find_inputs(named, lines, 2)
    found = [path for part in inputs.parts for path in part.paths]
    return [str(Path(path).relative_to(tree)) for path in found]


def test_a_folder_is_walked_in_order_without_what_is_hidden(tree: Path) -> None:
    assert paths(tree, str(tree)) == ["a.PNG", "b.jpg", "sub/c.webp"]


def test_patterns_and_lists_name_files_too(tree: Path) -> None:
    assert paths(tree, f"{tree}/**/*.webp") == ["sub/c.webp"]
    lines = (f"{tree}/b.jpg\n", "\n", f"{tree}/sub\n")
    assert paths(tree, "-", lines=lines) == ["b.jpg", "sub/c.webp"]


def test_a_named_file_needs_no_suffix(tree: Path) -> None:
    assert paths(tree, f"{tree}/notes.txt") == ["notes.txt"]


def test_parts_hold_so_many_images_and_no_more(tree: Path) -> None:
    inputs = find_inputs([str(tree)], [], 2)
    assert [(part.number, len(part.paths)) for part in inputs.parts] == [(0, 2), (1, 1)]
    assert inputs.num_images == 3


def test_the_digest_follows_names_and_sizes(tree: Path) -> None:
    before = find_inputs([str(tree)], [], 2).digest
    assert find_inputs([str(tree)], [], 5).digest == before
    (tree / "b.jpg").write_bytes(b"longer")
    assert find_inputs([str(tree)], [], 2).digest != before


def test_rows_of_parquet_are_split_without_gaps(tmp_path: Path) -> None:
    for name, num_rows in (("a", 5), ("b", 2)):
        pq.write_table(pa.table({"image": [b"x"] * num_rows}), tmp_path / f"{name}.parquet")
    inputs = find_inputs([str(tmp_path)], [], 3)
    ranges = [(Path(part.paths[0]).stem, part.start, part.stop) for part in inputs.parts]
    assert ranges == [("a", 0, 3), ("a", 3, 5), ("b", 0, 2)]
    assert inputs.num_images == 7


def test_a_shard_is_one_part(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"")
    (tmp_path / "1.tar").write_bytes(b"")
    assert [part.kind for part in find_inputs([str(tmp_path)], [], 3).parts] == ["tar", "tar"]


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        (["missing"], "missing does not exist"),
        (["*.gif"], "*.gif does not exist"),
        (["empty"], "No images found in empty"),
        (["a.jpg", "b.tar"], "several kinds"),
        (["broken.parquet"], "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_used_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("a.jpg", "b.tar", "broken.parquet"):
        Path(name).write_bytes(b"x")
    with pytest.raises(InputError, match=sentence.replace("*", r"\*")):
        find_inputs(named, [], 3)
