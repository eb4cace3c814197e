"""Lanes and threads by processors and memory, as the kernel's files tell them."""

from pathlib import Path

import pytest

from model.graphs import Precision
from model.package import FileEntry, Manifest, ModelPackage
from model.runtime.choice import RuntimeChoice
from model.runtime.libraries import RuntimeName
from service.lanes.machine import LanePlan, free_memory, plan_lanes, weight_bytes

GB = 10**9


@pytest.mark.parametrize(
    ("lanes", "threads", "cpus", "plan"),
    [
        (None, None, 1, LanePlan(1, 1)),
        (None, None, 2, LanePlan(2, 1)),
        (None, None, 32, LanePlan(8, 4)),
        (None, 2, 4, LanePlan(2, 2)),
        (None, 4, 2, LanePlan(1, 4)),
        (2, None, 8, LanePlan(2, 4)),
        (4, None, 2, LanePlan(4, 1)),
        (3, 5, 1, LanePlan(3, 5)),
    ],
)
def test_what_was_not_set_fills_the_processors(
    lanes: int | None, threads: int | None, cpus: int, plan: LanePlan
) -> None:
    found = plan_lanes(lanes=lanes, threads=threads, cpus=cpus, free_bytes=None, lane_bytes=GB)
    assert found == plan


def test_where_memory_is_short_fewer_lanes_have_more_threads() -> None:
    found = plan_lanes(lanes=None, threads=None, cpus=8, free_bytes=16 * GB, lane_bytes=4 * GB)
    assert found == LanePlan(2, 4)
    found = plan_lanes(lanes=None, threads=None, cpus=8, free_bytes=GB, lane_bytes=4 * GB)
    assert found == LanePlan(1, 8), "one is needed, whatever it takes"


def test_what_lanes_share_is_counted_once() -> None:
    found = plan_lanes(
        lanes=None, threads=None, cpus=8, free_bytes=16 * GB, lane_bytes=GB, shared_bytes=4 * GB
    )
    assert found == LanePlan(4, 2)
    found = plan_lanes(
        lanes=None, threads=None, cpus=8, free_bytes=16 * GB, lane_bytes=0, shared_bytes=4 * GB
    )
    assert found == LanePlan(8, 1), "nothing is known yet of what a lane takes for itself"


def test_only_the_graphs_that_are_loaded_are_counted(manifest: Manifest) -> None:
    sizes = {"onnx/vision_model.onnx": 100, "onnx/vision_model_int8.onnx": 7}
    sizes |= {"onnx/text_model.onnx": 20, "model.safetensors": 1000}
    files = {name: FileEntry(sha256="0" * 64, size_bytes=size) for name, size in sizes.items()}
    package = ModelPackage(Path(), manifest.model_copy(update={"files": files}))

    def weights(runtime: RuntimeName, precision: Precision) -> tuple[int, int]:
        choice = RuntimeChoice(runtime=runtime, precision=precision, device="cpu", reason="")
        return weight_bytes(package, choice)

    assert weights("onnx", "fp32") == (3 * 120, 0)
    assert weights("onnx", "int8") == (3 * 27, 0)
    assert weights("openvino", "bf16") == (0, 3 * 120), "shared by all lanes"
    assert weights("torch", "fp32") == (0, 3 * 1000)


def test_lanes_that_were_set_are_not_taken_back() -> None:
    found = plan_lanes(lanes=8, threads=None, cpus=8, free_bytes=GB, lane_bytes=4 * GB)
    assert found == LanePlan(8, 1)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def test_memory_is_free_by_the_machine_and_the_control_group(tmp_path: Path) -> None:
    assert free_memory(tmp_path, tmp_path) is None
    write(tmp_path, "meminfo", "MemTotal: 900 kB\nMemAvailable:     200 kB\n")
    assert free_memory(tmp_path, tmp_path) == 200 * 1024
    write(tmp_path, "memory.max", "max\n")
    write(tmp_path, "memory.current", "77\n")
    assert free_memory(tmp_path, tmp_path) == 200 * 1024
    write(tmp_path, "memory.max", "1000\n")
    assert free_memory(tmp_path, tmp_path) == 923
    write(tmp_path, "memory.stat", "anon 70\nfile 7\ninactive_file 5\nactive_file 2\n")
    assert free_memory(tmp_path, tmp_path) == 928, "files that were read can be forgotten"


def test_the_older_control_groups_are_read_too(tmp_path: Path) -> None:
    write(tmp_path, "memory/memory.limit_in_bytes", "500\n")
    write(tmp_path, "memory/memory.usage_in_bytes", "600\n")
    assert free_memory(tmp_path, tmp_path) == 0
    write(tmp_path, "memory/memory.stat", "cache 200\ntotal_inactive_file 150\n")
    assert free_memory(tmp_path, tmp_path) == 50
