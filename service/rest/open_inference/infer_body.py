"""Reads an inference request: JSON, and behind it the bytes of tensors that are not in the JSON."""

import binascii
from typing import Final

import pybase64

from service.errors import InvalidRequest
from service.messages import RequestLimits
from service.open_inference.inference import InferRequest
from service.open_inference.tensors import (
    IMAGE,
    InputTensor,
    TensorHead,
    check_head,
    read_items,
    read_raw,
    read_values,
    wrong_count,
)
from service.rest.image_input import parse_json
from service.rest.open_inference.schemas import InferBody, InputBody

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
MAX_DIGITS: Final = 12


def parse_infer(
    raw: bytes, header_length: str | None, limits: RequestLimits
) -> tuple[InferBody, tuple[InputTensor, ...]]:
    """The JSON of a request, and its inputs wherever their elements stand. CPU work.

    Args:
        raw: The whole body.
        header_length: Bytes of the JSON, as the HTTP header says; None where there is nothing else.
        limits: Of one request.

    Raises:
        InvalidRequest: A length or a tensor is wrong; the message says which.
        RequestTooLarge: There are too many values or items.
        ValidationError: A field is wrong or unknown, or the JSON is none.
    """
    num_json = len(raw) if header_length is None else _json_length(header_length, len(raw))
    body = parse_json(raw[:num_json], InferBody)
    rest = memoryview(raw)[num_json:]
    tensors = []
    position = 0
    for index, tensor in enumerate(body.inputs):
        param = f"inputs[{index}]"
        head = check_head(tensor.name, tensor.datatype, tensor.shape, limits, param=param)
        size = tensor.parameters.binary_data_size
        if size is None:
            tensors.append(_read_data(head, tensor))
            continue
        if tensor.data is not None:
            raise InvalidRequest(
                f"{param}: give either data or binary_data_size, not both.", param=param
            )
        if position + size > len(rest):
            raise InvalidRequest(
                f"{param}: binary_data_size is {size}, and {len(rest) - position} bytes are left "
                f"behind the JSON, which {HEADER_LENGTH} ends.",
                code="wrong_size",
                param=f"{param}.parameters.binary_data_size",
            )
        tensors.append(read_raw(head, rest[position : position + size]))
        position += size
    if position != len(rest):
        raise InvalidRequest(
            f"{len(rest) - position} bytes behind the JSON belong to no input; each has its "
            "parameter binary_data_size.",
            code="wrong_size",
            param="inputs",
        )
    return body, tuple(tensors)


def to_request(
    body: InferBody, inputs: tuple[InputTensor, ...], model: str, version: str
) -> InferRequest:
    """The request for the core, without what only says how the answer is written.

    Raises:
        InvalidRequest: An output is asked for in a way that is not supported.
    """
    for index, output in enumerate(body.outputs):
        if output.parameters.classification is not None:
            raise InvalidRequest(
                f"outputs[{index}]: classification is not supported, for the outputs are "
                "embeddings: compare cls1 with text_embeddings of the labels instead.",
                code="not_supported",
                param=f"outputs[{index}].parameters.classification",
            )
    parameters = {k: v for k, v in body.parameters.items() if k != "binary_data_output"}
    return InferRequest(
        model=model,
        version=version,
        inputs=inputs,
        outputs=tuple(output.name for output in body.outputs),
        parameters=parameters,
    )


def binary_outputs(body: InferBody) -> dict[str, bool]:
    """Which outputs are to be sent behind the JSON; the empty name is for those not named.

    Raises:
        InvalidRequest: `binary_data_output` is neither true nor false.
    """
    default = body.parameters.get("binary_data_output", False)
    if not isinstance(default, bool):
        raise InvalidRequest(
            "The parameter binary_data_output is true or false.",
            param="parameters.binary_data_output",
        )
    named = {o.name: o.parameters.binary_data for o in body.outputs}
    return {"": default} | {n: default if own is None else own for n, own in named.items()}


def _json_length(text: str, num_bytes: int) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
    if not is_number or int(text) > num_bytes:
        raise InvalidRequest(
            f"{HEADER_LENGTH} is the number of bytes of the JSON that the body begins with, and "
            f"the body has {num_bytes}.",
            code="wrong_size",
            param=HEADER_LENGTH,
        )
    return int(text)


def _read_data(head: TensorHead, tensor: InputBody) -> InputTensor:
    if tensor.data is None:
        raise InvalidRequest(
            f"{head.param} has no data: give data, or binary_data_size and the bytes behind the "
            f"JSON, with the header {HEADER_LENGTH}.",
            param=f"{head.param}.data",
        )
    if head.spec.datatype != "BYTES":
        return read_values(head, tensor.data)
    if len(tensor.data) != head.num_elements:
        raise wrong_count(head, len(tensor.data))
    is_base64 = head.spec is IMAGE or tensor.parameters.content_type == "base64"
    return read_items(
        head,
        [_decode(item, is_base64, f"{head.param}.data[{i}]") for i, item in enumerate(tensor.data)],
    )


def _decode(item: object, is_base64: bool, param: str) -> bytes:
    if not isinstance(item, str):
        raise InvalidRequest(f"{param} is a string{' of base64' * is_base64}.", param=param)
    if not is_base64:
        return item.encode("utf-8", "surrogatepass")
    try:
        return pybase64.b64decode(item, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            f"{param} is not base64, as BYTES are written in JSON here; or send it behind the JSON "
            "by binary_data_size.",
            code="invalid_base64",
            param=param,
        ) from None
