"""How many lanes and threads this machine's processors and memory are good for.

On a CPU several lanes of one thread compute more than one lane of several, so processors go to
lanes first. What a lane holds for itself is the memory of its images, and with some runtimes also
a copy of the weights: where memory does not hold that for each processor, the processors that are
left become further threads of the lanes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model.package import ModelPackage
from model.runtime.choice import RuntimeChoice
from model.runtime.loaded_graphs import loaded_bytes

MAX_LANES: Final = 8
# A loaded graph keeps its weights in the file's layout and in the processor's.
MEMORY_FACTOR: Final = 3
# Of the memory that is free; the rest is for images under way.
MEMORY_SHARE: Final = 0.5

PROC: Final = Path("/proc")
CGROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class LanePlan:
    """Lanes of a model, and threads of each."""

    num_lanes: int
    num_threads: int


def plan_lanes(
    *,
    lanes: int | None,
    threads: int | None,
    cpus: int,
    free_bytes: int | None,
    lane_bytes: int,
    shared_bytes: int = 0,
) -> LanePlan:
    """Fill in what was not set.

    Args:
        lanes: As set.
        threads: As set.
        cpus: That the process may use.
        free_bytes: Of memory; None where it is not known.
        lane_bytes: That one lane takes for itself.
        shared_bytes: That all of them take together.
    """
    if lanes is None:
        lanes = min(MAX_LANES, max(1, cpus // (threads or 1)))
        if free_bytes is not None and lane_bytes > 0:
            budget_bytes = int(free_bytes * MEMORY_SHARE) - shared_bytes
            lanes = max(1, min(lanes, budget_bytes // lane_bytes))
    return LanePlan(lanes, threads or max(1, cpus // lanes))


def weight_bytes(package: ModelPackage, choice: RuntimeChoice) -> tuple[int, int]:
    """About the memory that the graphs of a choice take: in each lane, and in all together.

    ONNX Runtime shares its sessions where lanes have one thread, which is not known before the
    lanes are planned; so each of its lanes is taken to hold the weights. Those on a GPU are not in
    this memory, but pass through it once.
    """
    num_bytes = MEMORY_FACTOR * loaded_bytes(package.manifest, choice.runtime, choice.precision)
    is_own = choice.runtime == "onnx" and choice.device == "cpu"
    return (num_bytes, 0) if is_own else (0, num_bytes)


def free_memory(cgroup: Path = CGROUP, proc: Path = PROC) -> int | None:
    """Bytes that this process may still take, by the machine and by its control group."""
    known = [size for size in (_machine_bytes(proc), _cgroup_bytes(cgroup)) if size is not None]
    return min(known, default=None)


def _machine_bytes(proc: Path) -> int | None:
    for line in _read(proc / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _cgroup_bytes(cgroup: Path) -> int | None:
    """What is left under the limit, in either version of control groups.

    Files that were read and may be forgotten count as used there, and are free all the same.
    """
    for limit_name, used_name, stat_name, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        limit, used = _read(cgroup / limit_name).strip(), _read(cgroup / used_name).strip()
        if limit.isdigit() and used.isdigit():
            stat = dict(line.split(" ", 1) for line in _read(cgroup / stat_name).splitlines())
            return max(0, int(limit) - int(used) + int(stat.get(cached, 0)))
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
