"""Runs a method on this machine's device and on all ranks: alone, with DDP, FSDP2 or HSDP.

With DDP every rank holds everything, and gradients are averaged during the backward pass. With
FSDP2 parameters, gradients, averages and optimizer state are sharded along their first axis, and a
block's weights are gathered only while it is used. HSDP is FSDP2 within each machine, and the
machines are replicas: weights are gathered over the fast links only. All compute what one process
would on the global batch, up to rounding.

In bfloat16, sharded blocks are gathered and computed in bfloat16, their norms too, and gradients
are added up in float32. What lies outside blocks, such as the prototypes, is gathered in float32.

Tested on the CPU with gloo. The code for CUDA with NCCL has not been run.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import Tipsv2Model

from training.data.batch import Batch
from training.distributed import average_gradients
from training.methods.base import Method, Step, Terms

ParallelKind = Literal["ddp", "fsdp2", "hsdp"]
Precision = Literal["float32", "bfloat16"]
Moved = TypeVar("Moved")


def choose_device() -> torch.device:
    """This rank's GPU if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def move(value: Moved, device: torch.device) -> Moved:
    """Copy a tensor, or a (nested) dataclass of tensors, to a device.

    The copy to a GPU is from pinned memory and asynchronous.
    """
    if device.type == "cpu":
        return value
    if isinstance(value, Tensor):
        if value.device == device:
            return value
        return cast("Moved", value.pin_memory().to(device, non_blocking=True))
    if is_dataclass(value) and not isinstance(value, type):
        parts = {item.name: move(getattr(value, item.name), device) for item in fields(value)}
        return cast("Moved", replace(value, **parts))
    return value


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Transformer blocks that are only called as a whole.

    The last vision block is left out, because the value path calls its parts.
    """
    for model in module.modules():
        if isinstance(model, Tipsv2Model):
            yield from list(model.vision_model.encoder.layer)[:-1]
            yield from model.text_model.encoder.layers


class ParallelMethod:
    """A method on its device, replicated on all ranks or sharded.

    Build the optimizers after it: FSDP2 replaces the parameters.

    Attributes:
        method: The method.
        device: Its device.
        is_sharded: Whether FSDP2 or HSDP shards it.
    """

    def __init__(
        self,
        method: Method,
        *,
        kind: ParallelKind = "ddp",
        precision: Precision = "float32",
        compile_blocks: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        self.method = method
        self.device = choose_device()
        method.to(self.device)
        if checkpoint_activations:
            method.model.activation_checkpointing_enable()
        if compile_blocks:
            for block in blocks(method):
                block.compile()
        self.is_sharded = kind != "ddp" and dist.is_initialized()
        self._module: nn.Module = method
        if self.is_sharded:
            _shard(method, _mesh(kind, self.device), precision)
        elif dist.is_initialized():
            # The parameters that a step uses depend on its stage and its captions. Buffers are
            # equal on all ranks, because methods average their updates over the ranks.
            self._module = DistributedDataParallel(
                method, find_unused_parameters=True, broadcast_buffers=False
            )

    def __call__(self, batch: Batch, step: Step) -> tuple[Tensor, Terms]:
        """Loss and terms of this rank's share of a step; call `backward` on the loss."""
        loss, terms = self._module(batch, step)
        return loss, terms

    @torch.no_grad()
    def embed_captions(self, batch: Batch, step: Step) -> Tensor:
        """The rows that a step contrasts over its micro-batches, without gradient."""
        rows_TF, _ = self._module(batch, step, only_embeds=True)
        return cast("Tensor", rows_TF)

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Defer the exchange of gradients to the last micro-batch of a step."""
        if isinstance(self._module, DistributedDataParallel) and not is_last:
            return cast("AbstractContextManager[None]", self._module.no_sync())
        if isinstance(self._module, FSDPModule):
            self._module.set_requires_gradient_sync(is_last)
        return nullcontext()

    def finish_gradients(self) -> None:
        """Average the gradients of scalars, which FSDP2 does not shard."""
        if self.is_sharded:
            average_gradients(
                [p for p in self.method.parameters() if p.ndim == 0 and p.requires_grad]
            )

    def whole_state(self) -> dict[str, Tensor]:
        """Gather the method's state on the CPU; called on all ranks, rank 0 gets the tensors."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole = get_model_state_dict(self.method, options=options)
        return cast("dict[str, Tensor]", whole)


def _mesh(kind: ParallelKind, device: torch.device) -> DeviceMesh:
    """All ranks in one line; for HSDP, a row for each machine.

    Raises:
        ValueError: Machines have different numbers of ranks.
    """
    ranks = dist.get_world_size()
    if kind == "fsdp2":
        return init_device_mesh(device.type, (ranks,))
    own = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))  # torchrun sets it
    if own == 0 or ranks % own:
        raise ValueError(
            f"parallel=hsdp needs torchrun with the same number of ranks on each machine, and not "
            f"{ranks} ranks with {own} on this one: set parallel=fsdp2"
        )
    shape = (ranks // own, own)
    return init_device_mesh(device.type, shape, mesh_dim_names=("machines", "ranks"))


def _shard(module: nn.Module, mesh: DeviceMesh, precision: Precision) -> None:
    policy = MixedPrecisionPolicy()
    if precision == "bfloat16":
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
        )
    for block in blocks(module):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # FSDP2 refuses scalars, such as the temperature: they are replicated.
    scalars = {parameter for parameter in module.parameters() if parameter.ndim == 0}
    fully_shard(module, mesh=mesh, ignored_params=scalars)
