"""Checkpoints of a run: one folder each, complete or absent.

    checkpoints/step-00001200/
        checkpoint.json      format version, step, ranks and optimizers
        state/               model, heads, averages, centre and optimizer state, through
                             torch.distributed.checkpoint: each rank writes its own part

A checkpoint is written under a temporary name and renamed once all of it is on disk, so a crash
leaves the previous one intact. A run can resume with another number of ranks, and with DDP from
what FSDP2 wrote. The step alone determines the next batch, so no data state is saved.

Optimizer state is named "optimizer.PARAMETER.FIELD". A parameter that has had no gradient yet has
no entry. Learning rates are not saved: they follow from the configuration and the step.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from model.files import atomic_file, rename, sync_tree
from training.distributed import is_first_rank, num_ranks, wait_for_all

Optimizers = Sequence[torch.optim.Optimizer]

CHECKPOINT_FOLDER = "checkpoints"
HEADER_FILE = "checkpoint.json"
FORMAT_VERSION = 3
_MODEL_PREFIX, _OPTIMIZER_PREFIX = "model.", "optimizer."
_PARTIAL = ".partial-"
_STATE = "state"


def save_atomically(state: object, path: Path) -> None:
    """Write a file of tensors atomically."""
    with atomic_file(path) as temporary:
        torch.save(state, temporary)


def latest_checkpoint(run: Path) -> Path | None:
    """The folder of a run's newest checkpoint."""
    return max((run / CHECKPOINT_FOLDER).glob("step-*"), default=None)


def checkpoint_step(run: Path) -> int:
    """Completed steps in a run's newest checkpoint; 0 if there is none."""
    found = latest_checkpoint(run)
    return 0 if found is None else int(found.name.removeprefix("step-"))


class CheckpointWriter:
    """Writes a run's checkpoints while it trains; called on all ranks.

    A state is copied to the host before the next step, and written beside the next steps. A
    checkpoint appears once all ranks have written their parts; an error of writing is raised by the
    next call.

    Args:
        run: The run's folder.
        keep: Newest checkpoints to keep.
        copy: Called on rank 0 with the folder of each complete checkpoint, to copy it elsewhere.
    """

    def __init__(
        self, run: Path, *, keep: int = 2, copy: Callable[[Path], None] | None = None
    ) -> None:
        self._root, self._keep, self._copy = run / CHECKPOINT_FOLDER, keep, copy
        # A group of its own: exchanges of two threads in one group would mix.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[Any] | None = None

    def start(self, *, step: int, method: nn.Module, optimizers: Optimizers) -> None:
        """Copy the state after `step` steps, once the checkpoint before is written."""
        self.finish()
        final, partial = self._root / f"step-{step:08d}", self._root / f"{_PARTIAL}{step:08d}"
        if is_first_rank():
            for left in self._root.glob(f"{_PARTIAL}*"):
                shutil.rmtree(left)
            partial.mkdir(parents=True)
        wait_for_all()
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        state = async_save(
            method.state_dict() | _optimizer_tensors(method, optimizers),
            checkpoint_id=partial / _STATE,
            process_group=self._group,
            no_dist=not dist.is_initialized(),
        )
        assert isinstance(state, Future)  # the other kind is for stagers that are given
        self._pending = state
        if is_first_rank():
            header = {
                "format_version": FORMAT_VERSION,
                "step": step,
                "num_ranks": num_ranks(),
                "optimizers": _kinds(optimizers),
            }
            self._pending = self._thread.submit(self._complete, state, header, partial, final)

    def finish(self) -> None:
        """Wait for this rank's part of the last checkpoint."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _complete(
        self, state: Future[Any], header: dict[str, Any], partial: Path, final: Path
    ) -> None:
        """Write the header, publish the checkpoint, and remove old ones."""
        state.result()  # of all ranks: its metadata is written last
        (partial / HEADER_FILE).write_text(json.dumps(header) + "\n", encoding="utf-8")
        _publish(partial, final)
        for old in sorted(self._root.glob("step-*"))[: -self._keep]:
            # Renamed first, so that a half-deleted checkpoint is never found.
            leaving = old.rename(old.with_name(f"{_PARTIAL}{old.name}"))
            shutil.rmtree(leaving)
        if self._copy is not None:
            self._copy(final)


def _publish(partial: Path, final: Path) -> None:
    """Rename a complete checkpoint once its files are on disk."""
    sync_tree(partial)
    if final.exists():  # the same step of the same run, with the same content
        shutil.rmtree(partial)
    else:
        rename(partial, final)


def save_checkpoint(
    run: Path, *, step: int, method: nn.Module, optimizers: Optimizers, keep: int = 2
) -> None:
    """Write the state after `step` steps and keep the newest `keep`; called on all ranks."""
    writer = CheckpointWriter(run, keep=keep)
    writer.start(step=step, method=method, optimizers=optimizers)
    writer.finish()
    wait_for_all()


def load_checkpoint(run: Path, *, method: nn.Module, optimizers: Optimizers) -> int:
    """Restore a run in place from its newest checkpoint; called on all ranks.

    Returns:
        The number of completed steps; 0 if there is no checkpoint.

    Raises:
        ValueError: The checkpoint is of another format, model, method or optimizer.
    """
    folder = latest_checkpoint(run)
    if folder is None:
        return 0
    header = _read_header(folder)
    if header["optimizers"] != (kinds := _kinds(optimizers)):
        raise ValueError(
            f"{folder} was trained by {' and '.join(header['optimizers'])}, not by "
            f"{' and '.join(kinds)}: set optim.optimizer back, or choose another run by "
            "--set name=NAME"
        )
    _load(folder, method, optimizers)
    return int(header["step"])


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one checkpoint of a run."""
    return (folder / HEADER_FILE).exists()


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Copy the model of one checkpoint, in place.

    Raises:
        ValueError: The checkpoint is of another format or model.
    """
    _read_header(checkpoint)
    _load(checkpoint, nn.ModuleDict({"model": model}), ())


def split_model(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a method's state into the model's weights and the rest, which keeps full names."""
    weights, rest = dict[str, Tensor](), dict[str, Tensor]()
    for name, value in state.items():
        own = name.removeprefix(_MODEL_PREFIX)
        (rest if own == name else weights)[own] = value
    return weights, rest


def _read_header(folder: Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads((folder / HEADER_FILE).read_text(encoding="utf-8"))
    if header["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format {header['format_version']}, and this version reads "
            f"{FORMAT_VERSION}: finish the run with the version that began it, or choose another "
            "by --set name=NAME; a finished run can be its start, --set start=RUN"
        )
    return header


def _load(folder: Path, method: nn.Module, optimizers: Optimizers) -> None:
    """Copy a method's state in place, and replace that of its optimizers.

    Without optimizers only the saved model is read.
    """
    reader = FileSystemReader(folder / _STATE)
    prefix = "" if optimizers else _MODEL_PREFIX
    saved: dict[str, Any] = reader.read_metadata().state_dict_metadata
    entries = {name: entry for name, entry in saved.items() if name.startswith(prefix)}
    moments = {name: entries.pop(name) for name in [*entries] if name.startswith(_OPTIMIZER_PREFIX)}
    state = method.state_dict()
    _check_shapes(folder, entries, state)
    owners = _owners(method, optimizers)
    for optimizer in optimizers:
        optimizer.state.clear()
    for key, entry in moments.items():
        name, _, field = key.removeprefix(_OPTIMIZER_PREFIX).rpartition(".")
        if name not in owners:
            raise ValueError(f"the checkpoint trained {name}, which this method does not")
        parameter, optimizer = owners[name]
        dtype = entry.properties.dtype
        buffer = (  # sharded like its parameter; optimizers count steps on the CPU
            torch.zeros(entry.size, dtype=dtype)
            if field == "step"
            else torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        )
        state[key] = optimizer.state[parameter][field] = buffer
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    load(state, storage_reader=reader, no_dist=not dist.is_initialized())


def _check_shapes(folder: Path, entries: Mapping[str, Any], ours: Mapping[str, Tensor]) -> None:
    wrong = sorted(entries.keys() ^ ours.keys())
    both = entries.keys() & ours.keys()
    wrong += [name for name in both if entries[name].size != ours[name].shape]
    if wrong:
        raise ValueError(
            f"{folder} is of another model or method: {', '.join(wrong[:5])} differ in presence or "
            "size; use the settings of the run, or choose another by --set name=NAME"
        )


def _kinds(optimizers: Optimizers) -> list[str]:
    """Class names in order, such as ["Muon", "AdamW"]."""
    return [type(optimizer).__name__ for optimizer in optimizers]


def _owners(
    method: nn.Module, optimizers: Optimizers
) -> dict[str, tuple[nn.Parameter, torch.optim.Optimizer]]:
    names = {parameter: name for name, parameter in method.named_parameters()}
    return {
        names[parameter]: (parameter, optimizer)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _optimizer_tensors(method: nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    """Every tensor of the optimizers' states by name, not copied."""
    return {
        f"{_OPTIMIZER_PREFIX}{name}.{field}": value
        for name, (parameter, optimizer) in _owners(method, optimizers).items()
        for field, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }
