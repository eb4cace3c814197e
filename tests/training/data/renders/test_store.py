"""Parts are kept, maps are read at the centres of cells, and test sets are complete or absent."""

from pathlib import Path

import numpy as np
import pytest

from training.data.renders import store
from training.data.renders.catalogues import Furniture
from training.data.renders.rooms import Render, RoomSource
from training.data.renders.store import (
    RenderPart,
    load_furniture,
    read_test_set,
    render_parts,
    write_test_set,
)


@pytest.fixture
def source(boxes: list[Furniture]) -> RoomSource:
    return RoomSource(furniture=boxes, side=32)


def test_maps_are_read_at_the_centres_of_their_cells() -> None:
    rows, columns = np.mgrid[0:8, 0:8].astype(np.float32)
    normals = np.stack((rows, columns, rows), axis=-1)
    render = Render(pixels_SS3=np.zeros((8, 8, 3), np.uint8), depth_SS=rows, normals_SS3=normals)
    part = RenderPart.of([render], 2)
    assert part.depth_Pmm[0].tolist() == [[2, 2], [6, 6]]
    assert part.normals_P3mm[0, 1].tolist() == [[2, 6], [2, 6]]


def test_parts_are_rendered_once(
    source: RoomSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PART_SIZE", 2)
    rendered: list[int] = []

    def render(index: int) -> Render:
        rendered.append(index)
        return source.render(index)

    first = list(render_parts(render, tmp_path, num_renders=3, map_side=8))
    assert [len(part.pixels_PSS3) for part in first] == [2, 2]
    assert rendered == [0, 1, 2, 3]
    again = list(render_parts(render, tmp_path, num_renders=5, map_side=8))
    assert rendered == [0, 1, 2, 3, 4, 5]
    assert all((a.depth_Pmm == b.depth_Pmm).all() for a, b in zip(first, again[:2], strict=True))


def test_a_test_set_is_read_as_it_was_rendered(source: RoomSource, tmp_path: Path) -> None:
    write_test_set(source.render, tmp_path / "test", 2)
    found = list(read_test_set(tmp_path / "test"))
    assert len(found) == 2
    wanted = source.render(1)
    assert (found[1].pixels_SS3 == wanted.pixels_SS3).all()
    assert (found[1].depth_SS == wanted.depth_SS).all()
    assert (found[1].normals_SS3 == wanted.normals_SS3).all()
    write_test_set(source.render, tmp_path / "test", 5)
    assert len(list(read_test_set(tmp_path / "test"))) == 2


def test_a_stopped_test_set_is_written_anew(
    source: RoomSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_test_set(source.render, tmp_path / "test", 2)
    assert not (tmp_path / "test").exists()
    write_test_set(source.render, tmp_path / "test", 1)
    assert len(list(read_test_set(tmp_path / "test"))) == 1


def test_catalogues_are_chosen_by_name(catalogue: Path) -> None:
    assert len(load_furniture(catalogue.parent)) == len(load_furniture(catalogue.parent, ["Test"]))
    with pytest.raises(FileNotFoundError, match="lacks the catalogue Scopia"):
        load_furniture(catalogue.parent, ["Scopia"])
