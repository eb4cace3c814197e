"""Two real ranks over gloo do what one process does on the whole batch; one rank does nothing."""

import json
import math
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from training import distributed

PROGRAM = Path(__file__).with_name("two_ranks.py")
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The program of a rank, as a module."""
    spec = spec_from_file_location("two_ranks", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> list[dict[str, Any]]:
    """What both ranks saw."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(rank), str(folder)],
            cwd=project_root,
            env={"PYTHONPATH": str(project_root), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=TIMEOUT_S)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return [json.loads((folder / f"rank-{rank}.json").read_text("utf-8")) for rank in range(2)]


def test_ranks_start_and_average_as_one_group(ranks: list[dict[str, Any]]) -> None:
    assert [rank["start"] for rank in ranks] == [[0, 2], [1, 2]]
    assert all(rank["is_over"] for rank in ranks)
    assert [rank["mean"] for rank in ranks] == [[0.5, 2.0]] * 2
    assert [rank["argument"] for rank in ranks] == [[0.0, 2.0], [1.0, 2.0]]
    assert [rank["found"] for rank in ranks] == [False, True]


def test_gradients_are_those_of_the_whole_batch(
    ranks: list[dict[str, Any]], program: ModuleType
) -> None:
    module = program.TwoParts()
    module.loss(program.data()).backward()
    expected = program.gradients(module)
    assert ranks[0]["gradients"] == ranks[1]["gradients"]
    for name, gradient in ranks[0]["gradients"].items():
        if expected[name] is None:
            assert gradient is None, name
        else:
            assert gradient == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
    # The second rank had no image for this part, and took its half of the first rank's gradient.
    assert any(ranks[1]["gradients"]["sometimes.weight"])


def test_parameters_without_a_gradient_anywhere_keep_none(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["gradients"]["never.weight"] is None
    assert ranks[0]["gradients"]["frozen.weight"] is None
    assert set(ranks[1]["untouched"].values()) == {None}


def test_the_centre_is_that_of_the_whole_batch(
    ranks: list[dict[str, Any]], program: ModuleType
) -> None:
    expected = program.centre_after(program.data())
    assert ranks[0]["centre"] == ranks[1]["centre"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_rows_of_all_ranks_are_gathered_in_order_with_their_gradients(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        assert rank["gathered"]["rows"] == [[0.0, 1.0], [2.0, 3.0], [7.0, 9.0]]
        assert rank["gathered"]["ids"] == [0, 1, 10]
    assert [rank["gathered"]["own"] for rank in ranks] == [[0, 2], [2, 3]]
    # Rank 0 weighs the rows by 1, 2 and 3, rank 1 by twice as much.
    assert ranks[0]["gathered"]["grad"] == [[3.0, 3.0], [6.0, 6.0]]
    assert ranks[1]["gathered"]["grad"] == [[9.0, 9.0]]
    assert ranks[0]["gathered"]["empty"] == [2, [0, 0], [], 0]
    assert ranks[1]["gathered"]["empty"] == [2, [0, 2], [[2.0], [2.0]], 0]
    expected = [math.log(1 + math.e), math.log(2) - 2]
    for rank in ranks:
        assert rank["gathered"]["sum"] == [3, 10]
        assert rank["gathered"]["logsumexp"] == pytest.approx(expected, rel=1e-6)


def test_one_rank_needs_no_group(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.start() == (0, 1)
    module = program.TwoParts()
    module.loss(program.data()).backward()
    before = program.gradients(module)
    distributed.average_gradients(module)
    assert program.gradients(module) == before
    values = torch.ones(2)
    assert distributed.mean_over_ranks(values) is values
    assert distributed.logsumexp_over_ranks(values) is values
    assert distributed.sum_over_ranks([3, 4], values.device) == [3, 4]
    (rows,), own = distributed.gather_rows(values)
    assert rows is values
    assert (own.start, own.stop) == (0, 2)
    with distributed.first_rank_first():
        pass
    distributed.stop()
