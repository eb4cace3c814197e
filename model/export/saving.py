"""Saves graphs: weights inside while they fit, else in a file beside, which graphs may share."""

import hashlib
from pathlib import Path
from typing import Final

import onnx_ir

# A protobuf message ends at 2 GiB; beyond this, weights go to a file beside the graph.
MAX_INLINE_BYTES: Final = 1_500_000_000
# Smaller tensors stay in the graph: shapes and axes, which readers want without a second file.
MIN_SHARED_BYTES: Final = 1024
# Whole pages, so that a runtime can map a tensor without copying it.
ALIGNMENT: Final = 4096


def save_graph(model: onnx_ir.Model, path: Path) -> bool:
    """Write a graph; its folder is made, and large weights go to `<name>.data` beside it.

    Returns:
        Whether they did.
    """
    weights = (weight.const_value for weight in model.graph.initializers.values())
    num_bytes = sum(weight.nbytes for weight in weights if weight is not None)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_large = num_bytes > MAX_INLINE_BYTES
    if is_large:
        with SharedWeights(path.with_name(f"{path.name}.data")) as beside:
            beside.take_from(model)
    onnx_ir.save(model, path)
    return is_large


class SharedWeights:
    """One file of weights for several graphs beside it; what two of them have is stored once."""

    def __init__(self, path: Path) -> None:
        """Begin the file; its folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("wb")
        self._places: dict[bytes, int] = {}

    def __enter__(self) -> "SharedWeights":
        """Nothing: the file is open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the file."""
        self._file.close()

    def take_from(self, model: onnx_ir.Model) -> None:
        """Move a graph's weights here; it must be saved in this file's folder."""
        for value in model.graph.initializers.values():
            weight = value.const_value
            if weight is not None and weight.nbytes >= MIN_SHARED_BYTES:
                value.const_value = onnx_ir.ExternalTensor(
                    location=self._path.name,
                    offset=self._place(weight.tobytes()),
                    length=weight.nbytes,
                    dtype=weight.dtype,
                    shape=onnx_ir.Shape(weight.numpy().shape),
                    name=str(value.name),
                    base_dir=self._path.parent,
                )

    def _place(self, content: bytes) -> int:
        digest = hashlib.sha256(content).digest()
        if digest not in self._places:
            start = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.seek(start)
            self._file.write(content)
            self._file.flush()
            self._places[digest] = start
        return self._places[digest]
