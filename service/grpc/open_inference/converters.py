"""Protobuf of the Open Inference Protocol to the core's requests and back."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from service.errors import InvalidRequest
from service.grpc.generated import open_inference_pb2 as pb
from service.grpc.unknown_fields import refuse_unknown_fields
from service.messages import RequestLimits
from service.open_inference.inference import InferAnswer, InferRequest
from service.open_inference.metadata import VERSION, ModelMetadata
from service.open_inference.tensors import (
    InputTensor,
    TensorHead,
    TensorSpec,
    check_head,
    read_items,
    read_raw,
    read_values,
)

# Where the elements of a datatype stand, where they are not raw.
CONTENTS: Final = {"BYTES": "bytes_contents", "UINT8": "uint_contents", "FP32": "fp32_contents"}
DATA_TYPES: Final = {"BYTES": pb.TYPE_STRING, "UINT8": pb.TYPE_UINT8, "FP32": pb.TYPE_FP32}


def to_infer(request: pb.ModelInferRequest, limits: RequestLimits) -> InferRequest:
    """Read a request.

    Raises:
        InvalidRequest: A field, a tensor or a parameter is wrong or unknown.
        RequestTooLarge: A tensor has too many items.
    """
    refuse_unknown_fields(request)
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs; give one "
            "for each, or none.",
            code="wrong_size",
            param="raw_input_contents",
        )
    inputs = []
    for index, tensor in enumerate(request.inputs):
        param = f"inputs[{index}]"
        _refuse_parameters(tensor.parameters, f"{param}.parameters")
        head = check_head(tensor.name, tensor.datatype, tensor.shape, limits, param=param)
        inputs.append(_raw(head, tensor, raw[index]) if raw else _typed(head, tensor.contents))
    for index, output in enumerate(request.outputs):
        _refuse_parameters(output.parameters, f"outputs[{index}].parameters")
    return InferRequest(
        model=request.model_name,
        version=request.model_version,
        inputs=inputs,
        outputs=[output.name for output in request.outputs],
        parameters=to_parameters(request.parameters),
    )


def num_listed(request: pb.ModelInferRequest) -> int:
    """How many numbers stand in lists, each to be looked at."""
    contents = [tensor.contents for tensor in request.inputs]
    return sum(len(c.uint_contents) + len(c.fp32_contents) for c in contents)


def from_infer(answer: InferAnswer, request_id: str) -> pb.ModelInferResponse:
    """Write an answer, its elements raw."""
    outputs, raw = [], []
    for name, array in answer.outputs.items():
        datatype = "FP16" if array.dtype == np.float16 else "FP32"
        outputs.append(
            pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=array.shape)
        )
        raw.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return pb.ModelInferResponse(
        model_name=answer.model,
        model_version=VERSION,
        id=request_id,
        outputs=outputs,
        raw_output_contents=raw,
    )


def from_model(metadata: ModelMetadata) -> pb.ModelMetadataResponse:
    """Write what a model takes and gives."""
    return pb.ModelMetadataResponse(
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        inputs=map(_tensor, metadata.inputs),
        outputs=map(_tensor, metadata.outputs),
    )


def to_config(metadata: ModelMetadata) -> pb.ModelConfig:
    """Write it in the terms of a configuration."""
    return pb.ModelConfig(
        name=metadata.name,
        platform=metadata.platform,
        backend=metadata.backend,
        input=[
            pb.ModelInput(
                name=spec.name, data_type=DATA_TYPES[spec.datatype], dims=spec.shape, optional=True
            )
            for spec in metadata.inputs
        ],
        output=[
            pb.ModelOutput(name=spec.name, data_type=DATA_TYPES[spec.datatype], dims=spec.shape)
            for spec in metadata.outputs
        ],
    )


def to_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a map of parameters, whichever of their fields they stand in."""
    values = {}
    for name, parameter in given.items():
        field = parameter.WhichOneof("parameter_choice")
        if field is None:
            raise InvalidRequest(
                f"The parameter {name[:100]!r} has no value.", param=f"parameters.{name[:100]}"
            )
        values[name] = getattr(parameter, field)
    return values


def _tensor(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.datatype, shape=spec.shape
    )


def _refuse_parameters(parameters: Mapping[str, Any], path: str) -> None:
    for name in parameters:
        what = "classification is not supported, for the outputs are embeddings"
        if name.startswith("shared_memory"):
            what = "shared memory is not offered; send the tensor in the message"
        elif name != "classification":
            what = f"{name[:100]!r} is not known"
        raise InvalidRequest(
            f"{path}: {what}; leave it out.",
            code="not_supported" if name == "classification" else "unknown_field",
            param=f"{path}.{name[:100]}",
        )


def _raw(
    head: TensorHead, tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes
) -> InputTensor:
    if tensor.HasField("contents"):
        raise InvalidRequest(
            f"{head.param}: give either contents or raw_input_contents, not both.",
            param=f"{head.param}.contents",
        )
    return read_raw(head, raw)


def _typed(head: TensorHead, contents: pb.InferTensorContents) -> InputTensor:
    wanted = CONTENTS[head.spec.datatype]
    for field, _ in contents.ListFields():
        if field.name != wanted:
            raise InvalidRequest(
                f"{head.param}: the elements of {head.spec.datatype} stand in {wanted}, not in "
                f"{field.name}.",
                param=f"{head.param}.contents.{field.name}",
            )
    values = getattr(contents, wanted)
    if wanted == "bytes_contents":
        return read_items(head, values)
    return read_values(head, list(values))
