"""Saves checkpoints without end, for test_checkpoint to kill: at step s every number is s.

Argument: the run's folder. Prints each step that is saved.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path

import torch

from training.checkpoint import save_checkpoint
from training.optim import build_optimizers

spec = spec_from_file_location("checkpoints", Path(__file__).with_name("test_checkpoint.py"))
assert spec is not None
assert spec.loader is not None
tests = module_from_spec(spec)
spec.loader.exec_module(tests)

module, config = tests.make_state()
optimizers = build_optimizers([module], config)
module.step(optimizers, with_head=True)
for step in count(1):
    with torch.no_grad():
        for value in module.state_dict().values():
            value.fill_(step)
        for optimizer in optimizers:
            for state in optimizer.state.values():
                for value in state.values():
                    value.fill_(step)
    save_checkpoint(Path(sys.argv[1]), step=step, method=module, optimizers=optimizers)
    print(step, flush=True)
