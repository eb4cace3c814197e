"""Where OpenVINO may round to bf16: in matrix products, and nowhere else.

Its hint alone rounds everything, also the sums that run through all blocks, and so loses twice what
the products lose. Left in float32, the rest costs little time and brings back a third of the masks
that differ.

A node is told by an attribute that Python cannot set, but that OpenVINO reads from its own files:
so the graph is written as such, marked, and read again.
"""

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

# Those that do next to all of the work, and the nodes that have no arithmetic.
ROUNDED: Final = frozenset({"MatMul", "Const", "Parameter", "Result"})
LAYER: Final = re.compile(
    r'(<layer id="\d+" name="[^"]*" type="([^"]*)"[^>]*>)(.*?)(</layer>)', re.S
)
MARK: Final = '<attribute name="precise" version="0" />'


def read_for_bf16(core: Any, path: Path, serialize: Callable[[Any, str, str], None]) -> Any:
    """Read a graph, with everything but its matrix products held to float32.

    Args:
        core: OpenVINO's.
        path: An ONNX graph of float32.
        serialize: `openvino.serialize`.

    Returns:
        A model for `core.compile_model` with the hint bf16. Its weights are mapped from a file
        that has lost its name, and so goes with the model.
    """
    with TemporaryDirectory(prefix="tipserve-openvino-") as folder:
        graph, weights = Path(folder) / "graph.xml", Path(folder) / "graph.bin"
        serialize(core.read_model(path), str(graph), str(weights))
        graph.write_text(hold_to_float32(graph.read_text(encoding="utf-8")), encoding="utf-8")
        return core.read_model(graph, weights)


def hold_to_float32(graph: str) -> str:
    """Mark every layer of an OpenVINO graph (XML) that is not to be rounded."""
    return LAYER.sub(_mark, graph)


def _mark(layer: re.Match[str]) -> str:
    head, kind, body, tail = layer.groups()
    if kind in ROUNDED:
        return layer[0]
    if "<rt_info>" in body:
        return head + body.replace("<rt_info>", f"<rt_info>{MARK}", 1) + tail
    info = f"<rt_info>{MARK}</rt_info>"
    # The schema has it behind the layer's own data, which not all have.
    data = re.search(r"<data [^>]*/>", body)
    end = data.end() if data else 0
    return f"{head}{body[:end]}{info}{body[end:]}{tail}"
