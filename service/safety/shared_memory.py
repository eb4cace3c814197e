"""System shared memory that callers on this machine register, for tensors outside of messages.

A region is read and written by system calls and never mapped: a caller that makes its object
smaller would otherwise end this process by SIGBUS, at the next access of the mapping.
"""

import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.errors import InvalidRequest

FOLDER: Final = Path("/dev/shm")  # Linux has the objects of shm_open there
# One name in that folder.
KEY: Final = re.compile(r"/?(?!\.\.?$)[^/\0]{1,250}")
MAX_REGIONS: Final = 64
MAX_NAME_CHARS: Final = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A registered part of a shared memory object, in bytes."""

    name: str
    key: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A part of a region, in bytes, and the request field that errors name."""

    region: str
    byte_size: int
    offset: int = 0
    param: str


class SharedMemory:
    """The registered regions of both protocols. Thread-safe."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._regions: dict[str, tuple[Region, int]] = {}

    def register(self, region: Region) -> None:
        """Open the object of a region.

        Raises:
            InvalidRequest: The name is taken, there is no such object, it is too small, or there
                are too many regions.
        """
        if not 1 <= len(region.name) <= MAX_NAME_CHARS:
            raise InvalidRequest(f"name must have 1 to {MAX_NAME_CHARS} characters.", param="name")
        if region.offset < 0 or region.byte_size < 1:
            raise InvalidRequest(
                "offset must be at least 0, and byte_size at least 1.", param="byte_size"
            )
        descriptor = self._open(region)
        with self._lock:
            problem = None
            if region.name in self._regions:
                problem = f"{region.name!r} is registered already; unregister it first."
            elif len(self._regions) >= MAX_REGIONS:
                problem = f"{MAX_REGIONS} regions are registered, which is the most; remove some."
            else:
                self._regions[region.name] = region, descriptor
        if problem is not None:
            os.close(descriptor)
            raise InvalidRequest(problem, param="name")

    def unregister(self, name: str = "") -> None:
        """Close a region, or all regions if the name is empty. An unknown one is closed already."""
        with self._lock:
            for known in [name] if name else list(self._regions):
                _, descriptor = self._regions.pop(known, (None, None))
                if descriptor is not None:
                    os.close(descriptor)

    def status(self, name: str = "") -> list[Region]:
        """One region, or all if the name is empty.

        Raises:
            InvalidRequest: No region has the name.
        """
        with self._lock:
            if name and name not in self._regions:
                raise _unknown(name, "name")
            return [region for region, _ in self._regions.values() if name in {"", region.name}]

    def read(self, place: Place) -> bytes:
        """A copy of the bytes of a place.

        Raises:
            InvalidRequest: The place is not within a region, or the object has become smaller.
        """
        with self._opened(place) as (descriptor, position):
            content = bytearray()
            while len(content) < place.byte_size:
                rest = place.byte_size - len(content)
                piece = os.pread(descriptor, rest, position + len(content))
                if not piece:
                    raise _too_small(place.region, place.param)
                content += piece
            return bytes(content)

    def write(self, place: Place, content: bytes) -> None:
        """Write to the beginning of a place.

        Raises:
            InvalidRequest: The content is larger than the place, which must be within a region, or
                the object has become smaller.
        """
        if len(content) > place.byte_size:
            raise InvalidRequest(
                f"{place.param}: the output has {len(content)} bytes, and its shared memory "
                f"{place.byte_size}.",
                code="wrong_size",
                param=place.param,
            )
        with self._opened(place) as (descriptor, position):
            if os.fstat(descriptor).st_size < position + place.byte_size:
                raise _too_small(place.region, place.param)
            rest = memoryview(content)
            while rest:
                begin = position + len(content) - len(rest)
                rest = rest[os.pwrite(descriptor, rest, begin) :]

    def check(self, place: Place) -> None:
        """Check that a place is within its region.

        Raises:
            InvalidRequest: It is not.
        """
        with self._lock:
            self._find(place)

    def _open(self, region: Region) -> int:
        if not KEY.fullmatch(region.key):
            raise InvalidRequest(
                "key must be the name of a shared memory object, such as /images.", param="key"
            )
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(self._folder / region.key.removeprefix("/"), flags)
        except OSError as error:
            raise InvalidRequest(
                f"key: the server cannot open the shared memory object {region.key!r} "
                f"({error.strerror}); create it first, readable and writable for the server.",
                param="key",
            ) from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size < region.offset + region.byte_size:
            os.close(descriptor)
            raise InvalidRequest(
                f"byte_size: the object {region.key!r} has {found.st_size} bytes, fewer than "
                "offset and byte_size say.",
                code="wrong_size",
                param="byte_size",
            )
        return descriptor

    @contextmanager
    def _opened(self, place: Place) -> Iterator[tuple[int, int]]:
        """A descriptor of its own, which `unregister` does not close, and the place's position."""
        with self._lock:
            region, shared = self._find(place)
            descriptor = os.dup(shared)
        try:
            yield descriptor, region.offset + place.offset
        finally:
            os.close(descriptor)

    def _find(self, place: Place) -> tuple[Region, int]:
        found = self._regions.get(place.region)
        if found is None:
            raise _unknown(place.region, place.param)
        size = found[0].byte_size
        if place.offset < 0 or place.byte_size < 0 or place.offset + place.byte_size > size:
            raise InvalidRequest(
                f"{place.param}: the region {place.region!r} has {size} bytes, and offset and "
                "byte_size lie beyond them.",
                code="wrong_size",
                param=place.param,
            )
        return found


def _unknown(name: str, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"{param}: no shared memory region {name[:100]!r} is registered; register it first.",
        param=param,
    )


def _too_small(name: str, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"{param}: the object of the shared memory region {name!r} has become smaller.",
        code="wrong_size",
        param=param,
    )
