"""Parts are kept, maps are read at the centres of cells, and test sets are complete or absent."""

from pathlib import Path

import numpy as np
import pytest

from training.data.renders import store
from training.data.renders.catalogues import Furniture
from training.data.renders.rooms import Render, RoomSource
from training.data.renders.store import RenderPart, read_test_set, render_parts, write_test_set


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


def test_a_test_set_is_complete_or_absent_and_written_once(
    source: RoomSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "test"
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_test_set(source.render, folder, 2)
    assert not folder.exists()
    for count in (2, 5):
        write_test_set(source.render, folder, count)
        found, wanted = list(read_test_set(folder)), source.render(1)
        assert len(found) == 2
        for name in ("pixels_SS3", "depth_SS", "normals_SS3"):
            assert np.array_equal(getattr(found[1], name), getattr(wanted, name))
