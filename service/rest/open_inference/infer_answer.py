"""Writes the answer to an inference request: JSON, and behind it the bytes of binary outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.open_inference.inference import InferAnswer
from service.open_inference.metadata import VERSION
from service.rest.json_body import dump


@dataclass(frozen=True, slots=True)
class WrittenAnswer:
    """A body, and how many of its bytes are JSON; None where all are."""

    content: bytes
    num_json: int | None


def write_infer(
    answer: InferAnswer, request_id: str | None, is_binary: Mapping[str, bool]
) -> WrittenAnswer:
    """Write an answer. CPU work: one copy of what is binary.

    Args:
        answer: What is sent.
        request_id: As the caller gave it, if so.
        is_binary: By output; the empty name is for those that are not there.

    Raises:
        InvalidRequest: float16 as JSON, which the protocol does not have.
    """
    outputs: list[dict[str, Any]] = []
    blobs: list[memoryview] = []
    for name, array in answer.outputs.items():
        datatype = "FP16" if array.dtype == np.float16 else "FP32"
        head = {"name": name, "datatype": datatype, "shape": array.shape}
        little = _little_endian(array)
        if is_binary.get(name, is_binary[""]):
            outputs.append(head | {"parameters": {"binary_data_size": little.nbytes}})
            blobs.append(little.data.cast("B"))
        elif datatype == "FP16":
            raise InvalidRequest(
                f"{name}: FP16 has no form in JSON; ask for it with binary_data.",
                param="parameters.output_datatype",
            )
        else:
            outputs.append(head | {"data": little.reshape(-1)})
    document: dict[str, Any] = {"model_name": answer.model, "model_version": VERSION}
    if request_id is not None:
        document["id"] = request_id
    content = dump(document | {"outputs": outputs})
    if not blobs:
        return WrittenAnswer(content, None)
    return WrittenAnswer(b"".join([content, *blobs]), len(content))


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
