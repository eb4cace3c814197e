"""Shared memory: bounds, names, objects that change, and what may not be opened."""

import os
from pathlib import Path

import pytest

from service.errors import InvalidRequest
from service.safety.shared_memory import MAX_REGIONS, Place, Region, SharedMemory


@pytest.fixture
def memory(tmp_path: Path) -> SharedMemory:
    (tmp_path / "object").write_bytes(bytes(range(100)))
    return SharedMemory(tmp_path)


def region(name: str = "a", key: str = "/object", offset: int = 10, byte_size: int = 50) -> Region:
    return Region(name=name, key=key, offset=offset, byte_size=byte_size)


def place(byte_size: int, offset: int = 0, name: str = "a") -> Place:
    return Place(region=name, byte_size=byte_size, offset=offset, param="inputs[0]")


def test_a_place_is_read_and_written_within_its_region(
    memory: SharedMemory, tmp_path: Path
) -> None:
    memory.register(region())
    assert memory.read(place(3)) == bytes([10, 11, 12])
    assert memory.read(place(2, offset=48)) == bytes([58, 59])
    assert memory.read(place(0, offset=50)) == b""
    memory.write(place(4, offset=46), b"abc")
    assert (tmp_path / "object").read_bytes()[55:60] == bytes([55]) + b"abc" + bytes([59])
    for wrong in (place(51), place(1, offset=50), place(-1, offset=10), place(5, offset=-1)):
        for act in (memory.check, memory.read, lambda at: memory.write(at, b"")):
            with pytest.raises(InvalidRequest, match=r"inputs\[0\]") as caught:
                act(wrong)
            assert caught.value.code == "wrong_size"
    with pytest.raises(InvalidRequest, match="5 bytes, and its shared memory 4"):
        memory.write(place(4), b"abcde")
    assert len((tmp_path / "object").read_bytes()) == 100


def test_a_region_is_found_until_it_is_unregistered(memory: SharedMemory) -> None:
    memory.register(region())
    memory.register(region("b", "object", 0, 100))
    assert memory.status() == [region(), region("b", "object", 0, 100)]
    assert memory.status("a") == [region()]
    with pytest.raises(InvalidRequest, match="registered already"):
        memory.register(region())
    memory.unregister("a")
    memory.unregister("a")
    for act in (lambda: memory.status("a"), lambda: memory.read(place(1))):
        with pytest.raises(InvalidRequest, match="no shared memory region 'a'"):
            act()
    memory.unregister()
    assert memory.status() == []


def test_an_object_that_becomes_smaller_is_an_error(memory: SharedMemory, tmp_path: Path) -> None:
    """A mapping of it would end the process by SIGBUS."""
    memory.register(region())
    os.truncate(tmp_path / "object", 20)
    assert memory.read(place(10)) == bytes(range(10, 20))
    for act in (lambda: memory.read(place(11)), lambda: memory.write(place(11), b"x")):
        with pytest.raises(InvalidRequest, match="has become smaller"):
            act()
    assert (tmp_path / "object").stat().st_size == 20


@pytest.mark.parametrize(
    "wrong",
    [
        region(key="/missing"),
        region(key=""),
        region(key=".."),
        region(key="/../object"),
        region(key="//object"),
        region(key="folder/object"),
        region(key="folder"),
        region(key="link"),
        region(key="pipe"),
        region(key="object\0"),
        region(key="x" * 300),
        region(offset=60),
        region(offset=2**63 - 1, byte_size=2**63 - 1),
        region(offset=-1),
        region(byte_size=0),
        region(name=""),
        region(name="x" * 300),
    ],
)
def test_nothing_but_an_object_of_the_folder_is_opened(
    memory: SharedMemory, tmp_path: Path, wrong: Region
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "object").write_bytes(bytes(100))
    (tmp_path / "link").symlink_to(tmp_path / "object")
    os.mkfifo(tmp_path / "pipe")
    before = num_descriptors_open()
    with pytest.raises(InvalidRequest):
        memory.register(wrong)
    assert memory.status() == []
    assert num_descriptors_open() == before


def test_regions_are_bounded_and_closed(memory: SharedMemory) -> None:
    before = num_descriptors_open()
    for number in range(MAX_REGIONS):
        memory.register(region(str(number)))
    with pytest.raises(InvalidRequest, match="which is the most"):
        memory.register(region("one more"))
    assert num_descriptors_open() == before + MAX_REGIONS
    memory.unregister()
    assert num_descriptors_open() == before


def num_descriptors_open() -> int:
    return len(os.listdir("/proc/self/fd"))
