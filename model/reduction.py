"""What a device computes of an image's patches, so that only its small results are copied back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from model.graphs import PatchOutput

# Input of every graph of a reduction: float32 [N, D].
ROWS_INPUT: Final = "rows_ND"
# What a reduction gives, by name.
Reduced = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reduction:
    """A graph to run on the patches of one image, where they are.

    Attributes:
        source: The patch output that it reads, as `ROWS_INPUT`.
        graph: The ONNX file.
        inputs: The other inputs by name, in host memory.
        outputs: Names of the outputs to compute and return.
    """

    source: PatchOutput
    graph: Path
    inputs: Mapping[str, NDArray[Any]]
    outputs: tuple[str, ...]
