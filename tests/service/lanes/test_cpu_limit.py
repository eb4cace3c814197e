"""The quota of a control group, in both of its versions, bounds the CPUs."""

import os
from pathlib import Path

import pytest

from service.lanes.machine import available_cpus


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("", 8)],
)
def test_version_two(tmp_path: Path, text: str, cpus: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{text}\n")
    assert available_cpus(tmp_path) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("300000", 3)])
def test_version_one(tmp_path: Path, quota: str, cpus: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cpus(tmp_path) == cpus


def test_without_control_groups_affinity_decides(tmp_path: Path) -> None:
    assert available_cpus(tmp_path / "missing") == 8
