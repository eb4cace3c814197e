"""Random numbers of a test depend neither on earlier tests nor on the run."""

import ast
import random
from pathlib import Path

import numpy as np
import pytest
import torch

GENERATORS = {"default_rng", "RandomState", "Generator", "Random"}


def shared_generators(source: str) -> list[int]:
    """Lines on which a module stores a generator that its functions share."""
    return [
        node.lineno
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).rpartition(".")[2] in GENERATORS
    ]


@pytest.mark.slow
def test_no_test_module_shares_a_generator(project_root: Path, python_files: list[Path]) -> None:
    assert shared_generators("A = default_rng(0)\nB = default_rng(0).random(3)\n") == [1]
    shared = [
        f"{path}:{line}"
        for path in python_files
        if path.parts[0] == "tests"
        for line in shared_generators((project_root / path).read_text(encoding="utf-8"))
    ]
    assert not shared, f"create these generators where they are used: {shared}"


@pytest.mark.parametrize("turn", ["one", "two"])
def test_every_test_draws_the_same_numbers(turn: str) -> None:
    assert random.random() == random.Random(0).random(), turn
    assert np.random.random() == np.random.RandomState(0).random()
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
