"""An archive is read only if it holds plain float arrays."""

import io
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.checkpoints.array_archive import read_archive
from model.checkpoints.checkpoint import CheckpointError

GOOD = np.arange(6, dtype=np.float32).reshape(2, 3)


def npy(array: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.npz"


def test_arrays_of_any_float_type_and_layout_become_float32(path: Path) -> None:
    half, double, huge = np.full(2, 0.5, np.float16), np.array(2.5), np.array([1e300])
    columns, big = np.asfortranarray(GOOD), GOOD.astype(">f4")
    np.savez_compressed(path, a=GOOD, half=half, double=double, columns=columns, big=big, huge=huge)
    arrays = read_archive(path)
    for name in ("a", "columns", "big"):
        assert torch.equal(arrays[name], torch.from_numpy(GOOD))
    assert torch.equal(arrays["half"], torch.tensor([0.5, 0.5]))
    assert torch.equal(arrays["double"], torch.tensor(2.5))
    assert arrays["huge"].isinf().all()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.npy": npy(np.array([{}], dtype=object))}, "Object arrays cannot be loaded"),
        ({"a.npy": npy(np.arange(3))}, "'a.npy' holds int64"),
        ({"data.pkl": b"\x80\x04N."}, "'data.pkl' is not a .npy array"),
        ({"a.npy": npy(GOOD).replace(b"(2, 3)", b"(9, 9)")}, "expected 324 bytes got 24"),
        ({"a.npy": npy(GOOD).replace(b"(2, 3), ", b"(9**9,),")}, "damaged"),
        ({"a.npy": npy(GOOD) + b"more"}, "has more bytes than its array"),
        ({"a.npy": npy(np.zeros(2**20, np.float32))}, "would unpack to"),
        ({}, "holds no arrays"),
    ],
)
def test_bad_members_are_refused(path: Path, members: dict[str, bytes], message: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match=message):
        read_archive(path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "weights.npz"


@settings(max_examples=50)
@given(data=st.data())
def test_damage_anywhere_is_refused_or_changes_no_value(scratch: Path, data: st.DataObject) -> None:
    np.savez(scratch, allow_pickle=False, a=GOOD, b=GOOD[0])
    content = bytearray(scratch.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    scratch.write_bytes(content)
    found = dict[str, torch.Tensor]()
    with suppress(CheckpointError):
        found = read_archive(scratch)
    # The checksum does not cover a name; a reader that looks for 'a' misses it.
    expected = {"a": torch.from_numpy(GOOD), "b": torch.from_numpy(GOOD[0])}
    for name in found.keys() & expected.keys():
        assert torch.equal(found[name], expected[name])
