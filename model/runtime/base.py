"""The interface of every runtime, checks of its inputs, and the cache of shared graphs.

Shapes: B batch, N patches, L tokens, D embedding width, H W pixels, 3 colour channels (RGB).
"""

import re
import threading
import weakref
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from model.graphs import PATCH_OUTPUTS, DenseTask, PatchOutput, Precision

Device = Literal["cpu", "gpu"]


class MissingRuntimeError(ImportError):
    """The runtime's library is not installed; the message names the extra that brings it."""


class UnusableRuntimeError(ValueError):
    """The chosen backend cannot compute here; the message says why and what to choose instead."""


class Interrupted(RuntimeError):
    """`Runtime.interrupt` ended the call early."""


# As ONNX Runtime, torch and CUDA say it; each has its own class.
OUT_OF_MEMORY: Final = re.compile(
    "out of memory|failed to allocate memory|cudaErrorMemoryAllocation"
    # An arena with a limit, in ONNX Runtime.
    "|is smaller than requested bytes",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a runtime failed because the memory, of the GPU or of the host, is full."""
    return isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneShare:
    """Resources of one lane.

    Attributes:
        num_threads: CPU threads of one call.
        num_lanes: Number of lanes with this backend; they share weights if the backend can.
        cache: Folder for compiled engines; None is the user's default.
        is_lazy: On CPUs, load a tower on its first use too, as heads are.
        max_batch_patches: Patches of the largest batch, if the user has set it.
    """

    num_threads: int = 1
    num_lanes: int = 1
    cache: Path | None = None
    is_lazy: bool = False
    max_batch_patches: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisionOutput:
    """All vision embeddings of a batch: float32, not normalised, patches in row-major order.

    Attributes:
        cls1_BD: First CLS token, trained with short captions.
        cls2_BD: Second CLS token, trained with descriptive captions.
        patches_BND: Patch embeddings of the last layer; N is 0 if they were not requested.
        values_BND: Those of the last layer's value path, which segmentation uses; likewise.
        grid_hw: Numbers of patch rows and columns; their product is N of requested outputs.
        maps: Outputs of the requested dense heads; see `Runtime.estimate`.
    """

    cls1_BD: NDArray[np.float32]
    cls2_BD: NDArray[np.float32]
    patches_BND: NDArray[np.float32]
    values_BND: NDArray[np.float32]
    grid_hw: tuple[int, int]
    maps: Mapping[DenseTask, NDArray[np.float32]] = field(default_factory=dict)


class Runtime(Protocol):
    """Execute a package's graphs. An instance serves one thread at a time."""

    name: str
    precision: Precision
    device: Device
    # Dense heads of this package.
    tasks: tuple[DenseTask, ...]
    # Whether pixels may also be uint8.
    takes_bytes: bool

    def encode_images(
        self,
        pixels_B3HW: NDArray[Any],
        tasks: Sequence[DenseTask] = (),
        patch_outputs: Collection[PatchOutput] = PATCH_OUTPUTS,
    ) -> VisionOutput:
        """Embed images of one size, and run dense heads on them.

        Heads in the precision of the embeddings share their pass through the vision tower.

        Args:
            pixels_B3HW: float32 RGB in [0, 1], or uint8 if it `takes_bytes`; H and W multiples of
                the patch size (with tasks, of two patches), any B >= 1.
            tasks: Of `tasks`.
            patch_outputs: Which of them to return. Each is copied, on a GPU over PCIe: 3.1 MB for
                an image of 448 x 448 in B/14.

        Raises:
            ValueError: Another shape or dtype, or a task that this package has no head for.
        """
        ...

    def encode_texts(
        self, token_ids_BL: NDArray[np.int64], mask_BL: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Embed texts: [B, D], float32, not normalised.

        Args:
            token_ids_BL: int64, padded on the right.
            mask_BL: int64, 1 for tokens and 0 for padding; each row has at least one token.

        Raises:
            ValueError: Another shape or dtype, too many tokens, or a row of padding only.
        """
        ...

    def estimate(self, task: DenseTask, pixels_B3HW: NDArray[Any]) -> NDArray[np.float32]:
        """Run a dense head on images of one size.

        H' and W' are eight times the patch rows and columns.

        Args:
            task: One of `tasks`.
            pixels_B3HW: As in `encode_images`; H and W multiples of two patches.

        Returns:
            Depth [B, H', W'] in metres, normals [B, 3, H', W'] not yet of unit length, or
            segmentation logits [B, K, H', W'].

        Raises:
            ValueError: Another shape or dtype, or a task that this package has no head for.
        """
        ...

    def interrupt(self) -> None:
        """Make the running call of another thread, if any, raise `Interrupted` soon."""
        ...

    def release_idle_memory(self) -> None:
        """Free what graphs keep for their next call; any thread may do so at any time."""
        ...

    def close(self) -> None:
        """Free the graphs. Closing twice is harmless; encoding after it is an error."""
        ...


class InterruptibleCall:
    """The flag of one call. Each call has its own, so a late interruption meets no later call."""

    def __init__(self) -> None:
        self.is_interrupted = False

    def check(self) -> None:
        """Raise `Interrupted` if another thread has ended the call."""
        if self.is_interrupted:
            raise Interrupted("the call was interrupted")


def still_open(graph: Any) -> Any:
    """Return a runtime's graph; RuntimeError if it is None, because the runtime was closed."""
    if graph is None:
        raise RuntimeError("this runtime is closed; load another")
    return graph


def check_pixels(
    pixels_B3HW: NDArray[Any], *, patch_size: int, may_be_bytes: bool = False
) -> tuple[int, int]:
    """Check a batch of images; returns patch rows and columns.

    Raises:
        ValueError: The array is no float32 [B, 3, H, W] (or uint8, if it may be) with sides that
            are multiples of a patch.
    """
    shape = pixels_B3HW.shape
    if pixels_B3HW.dtype != np.float32 and not (may_be_bytes and pixels_B3HW.dtype == np.uint8):
        raise ValueError(f"pixels must be float32 in [0, 1], not {pixels_B3HW.dtype}")
    if len(shape) != 4 or shape[1] != 3 or shape[0] < 1:
        raise ValueError(f"pixels must have the shape [batch, 3, height, width], not {list(shape)}")
    height, width = shape[2:]
    if height < 1 or width < 1 or height % patch_size or width % patch_size:
        raise ValueError(
            f"height and width must be multiples of {patch_size}, not {height} x {width}; "
            "choose a size with model.preprocess.target_size"
        )
    return height // patch_size, width // patch_size


def check_tokens(
    token_ids_BL: NDArray[np.int64], mask_BL: NDArray[np.int64], *, max_tokens: int
) -> None:
    """Check a batch of tokenised texts.

    Raises:
        ValueError: The arrays are no int64 [B, L] of one shape with 1 <= L <= `max_tokens`, or a
            row holds padding only.
    """
    if token_ids_BL.dtype != np.int64 or mask_BL.dtype != np.int64:
        raise ValueError(
            f"token ids and mask must be int64, not {token_ids_BL.dtype} and {mask_BL.dtype}"
        )
    shape = token_ids_BL.shape
    if len(shape) != 2 or shape != mask_BL.shape or shape[0] < 1:
        raise ValueError(
            "token ids and mask must both have the shape [batch, tokens], "
            f"not {list(shape)} and {list(mask_BL.shape)}"
        )
    if not 1 <= shape[1] <= max_tokens:
        raise ValueError(f"a text has 1 to {max_tokens} tokens, not {shape[1]}")
    empty_rows = np.flatnonzero(mask_BL.sum(axis=1) == 0)
    if empty_rows.size:
        raise ValueError(f"text {empty_rows[0]} has no token; an empty text has no embedding")


class SharedGraphCache:
    """Loaded graphs that lanes of one process share, so that weights are in memory once.

    A graph is freed with its last user.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()

    def take(self, key: Hashable, load: Callable[[], Any]) -> Any:
        """Return the graph of a key, loaded if it is new; other callers wait for the load."""
        with self._lock:
            found = self._held.get(key)
            if found is None:
                found = self._held[key] = load()
            return found
