"""Which machines HSDP takes; `test_trainer_ranks.py` trains by every kind of parallelism."""

import pytest
import torch

from training.parallel import _mesh


def test_hsdp_needs_equal_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="4 ranks with 3 on this one: set parallel=fsdp2"):
        _mesh("hsdp", torch.device("cpu"))
