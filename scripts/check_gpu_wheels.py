"""Checks that the wheels of the extras for GPUs fit each other, without installing them.

`python scripts/check_gpu_wheels.py gpu` downloads the wheels of `requirements/gpu,otel.txt` one by
one (2 GB), reads which libraries each shared object needs, and fails if none of the wheels has one
of them. Its output belongs in docs/gpu.md. TensorRT's own libraries come from NVIDIA's index, not
from PyPI: the version of its bindings stands for them.
"""

import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[1]
SHARED_OBJECT = re.compile(r"\.so(\.\d+)*$")
# Of the base image (dpkg needs zlib), and of the driver, which the container toolkit mounts.
SYSTEM = re.compile(r"(lib(c|m|dl|pthread|rt|gcc_s|stdc\+\+|z)|ld-linux-x86-64)\.so\.\d+")
DRIVER = {"libcuda.so.1", "libnvidia-ml.so.1"}
TENSORRT = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
# Wheels whose libraries matter; the others of the resolution are plain Python or NumPy.
OF_GPU = re.compile(r"(nvidia|cuda|onnxruntime|tensorrt)\b")
OF_NVIDIAS_INDEX = re.compile(r"tensorrt-cu\d+(-libs)?==")
# They open a device or fabric that serving does not use, when it is there.
OPTIONAL = re.compile(r"lib(cufile_rdma|nvshmem\w*)\.so")


def locked(extra: str) -> list[str]:
    """Names and versions of the wheels for GPUs that the image of an extra installs."""
    text = (ROOT / "requirements" / f"{extra},otel.txt").read_text(encoding="utf-8")
    names = re.findall(r"^([\w.-]+==[\w.]+)", text, re.MULTILINE)
    return sorted(name for name in names if OF_GPU.match(name))


def read_wheel(wheel: Path) -> dict[str, set[str]]:
    """Needed libraries of each shared object, by the object's file name and its SONAME."""
    needed: dict[str, set[str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in filter(SHARED_OBJECT.search, archive.namelist()):
            libraries, names = _dynamic(archive.read(name))
            for known in {Path(name).name, *names}:
                needed.setdefault(known, set()).update(libraries)
    return needed


def _dynamic(content: bytes) -> tuple[set[str], set[str]]:
    """NEEDED and SONAME of a shared object."""
    needed: set[str] = set()
    names: set[str] = set()
    for section in ELFFile(io.BytesIO(content)).iter_sections():
        if isinstance(section, DynamicSection):
            tags: list[Any] = list(section.iter_tags())
            needed |= {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
            names |= {tag.soname for tag in tags if tag.entry.d_tag == "DT_SONAME"}
    return needed, names


def of_tensorrt(versions: list[str]) -> Set[str]:
    """Libraries of `tensorrt-cuNN-libs`, which has the version of the bindings."""
    majors = {v.split("==")[1].split(".")[0] for v in versions if v.startswith("tensorrt")}
    return {f"{name}.so.{major}" for name in TENSORRT for major in majors}


def missing(needed: Mapping[str, Set[str]], available: Set[str]) -> Iterator[str]:
    """Sentences on libraries that no wheel has, and neither the system nor the driver."""
    for name, libraries in sorted(needed.items()):
        for library in sorted(libraries - available - DRIVER - needed.keys()):
            if not SYSTEM.fullmatch(library) and not OPTIONAL.match(library):
                yield f"{name} needs {library}, which no wheel of the extra has"


def check(extra: str) -> list[str]:
    """Download the extra's wheels one by one; returns the problems."""
    versions = [name for name in locked(extra) if not OF_NVIDIAS_INDEX.match(name)]
    needed: dict[str, set[str]] = {}
    for version in versions:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--only-binary=:all:", f"--dest={folder}", version]
            subprocess.run(command, check=True)
            (wheel,) = Path(folder).iterdir()
            found = read_wheel(wheel)
            print(
                f"{version}  {wheel.stat().st_size / 1e6:.0f} MB, {len(found)} objects", flush=True
            )
        for name, libraries in found.items():
            needed.setdefault(name, set()).update(libraries)
    for name in sorted(needed):
        if re.match(r"libonnxruntime_providers_cuda|tensorrt\.so", name):
            wanted = sorted(n for n in needed[name] if not SYSTEM.fullmatch(n))
            print(f"{name} needs {', '.join(wanted)}")
    return list(missing(needed, of_tensorrt(versions)))


if __name__ == "__main__":
    status = 0
    for asked in sys.argv[1:] or ["gpu", "gpu-cuda12"]:
        print(f"[{asked}]")
        problems = check(asked)
        print("\n".join(problems) or "every needed library is there")
        status |= bool(problems)
    sys.exit(status)
