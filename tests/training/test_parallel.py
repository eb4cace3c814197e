"""Four ranks over gloo, replicated and sharded in both ways, train as one process does."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.training.four_ranks import CASES, NUM_RANKS, take_steps
from tests.training.ranks import ROOT, TIMEOUT_S
from training.parallel import ParallelKind, Precision, _mesh

Seen = list[dict[str, dict[str, Any]]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT_S)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Results of all ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run(
        [sys.executable, "-m", "tests.training.four_ranks", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=TIMEOUT_S,
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(NUM_RANKS)]


@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_all_kinds_train_as_one_process_does(
    ranks: Seen, kind: ParallelKind, precision: Precision
) -> None:
    alone = take_steps("ddp", precision)
    tolerance = 1e-5 if precision == "float32" else 3e-3
    for rank in ranks:
        found = rank[f"{kind} {precision}"]
        assert found["loss"] == pytest.approx(alone["loss"], rel=tolerance)
        assert found["grad_norm"] == pytest.approx(alone["grad_norm"], rel=10 * tolerance)
    weights = ranks[0][f"{kind} {precision}"]["weights"]
    assert weights.keys() == alone["weights"].keys()
    for name, value in alone["weights"].items():
        # Biases of keys have no effect; they consist of rounding errors.
        if not name.endswith("k_proj.bias"):
            error = float((weights[name] - value).norm())
            assert error <= 10 * tolerance * max(float(value.norm()), 0.05), name


def test_a_machine_holds_everything_once(ranks: Seen) -> None:
    def over_ranks(case: str) -> int:
        return sum(int(rank[case]["local"]) for rank in ranks)

    assert over_ranks("hsdp float32") == 2 * over_ranks("fsdp2 float32")
    assert over_ranks("ddp float32") == 0  # no sharded parameter


def test_hsdp_needs_equal_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="4 ranks with 3 on this one: set parallel=fsdp2"):
        _mesh("hsdp", torch.device("cpu"))
