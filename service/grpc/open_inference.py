"""The Open Inference Protocol over gRPC."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from google.protobuf.json_format import ParseDict

from service.call import Call, current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest, ServiceError, Unavailable
from service.grpc.converters import refuse_unknown_fields
from service.grpc.generated import open_inference_pb2 as pb
from service.grpc.generated.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from service.messages import RequestLimits
from service.models.registry import ModelRepository, managed_repository
from service.open_inference.inference import InferAnswer, InferRequest, infer
from service.open_inference.metadata import (
    VERSION,
    check_load,
    find_model,
    model_config,
    model_metadata,
    repository_index,
    server_metadata,
    statistics,
)
from service.open_inference.tensors import (
    InputTensor,
    TensorHead,
    check_head,
    read_items,
    read_raw,
    read_values,
)

# Field of `contents` that has the elements of each datatype.
CONTENTS: Final = {"BYTES": "bytes_contents", "UINT8": "uint_contents", "FP32": "fp32_contents"}
READ_AT_ONCE: Final = 4096
# Of tensors over REST. KServe's client sends them over gRPC, too, where they say nothing.
REST_PARAMETERS: Final = {"binary_data", "binary_data_size"}


class InferenceServicer(GRPCInferenceServiceServicer):
    """`inference.GRPCInferenceService`; without a repository models cannot be managed."""

    def __init__(self, plane: DataPlane, repository: ModelRepository | None) -> None:
        self._plane = plane
        self._repository = repository

    async def ServerLive(  # noqa: N802 - named by the contract, as all below
        self, request: pb.ServerLiveRequest, context: Any
    ) -> pb.ServerLiveResponse:
        """Whether the process and its device respond."""
        return pb.ServerLiveResponse(live=_holds(self._plane.check_live))

    async def ServerReady(  # noqa: N802
        self, request: pb.ServerReadyRequest, context: Any
    ) -> pb.ServerReadyResponse:
        """Whether the server accepts requests."""
        return pb.ServerReadyResponse(ready=_holds(self._plane.check_ready))

    async def ModelReady(  # noqa: N802
        self, request: pb.ModelReadyRequest, context: Any
    ) -> pb.ModelReadyResponse:
        """Whether a model answers requests."""
        refuse_unknown_fields(request)
        info = find_model(self._plane, request.name, request.version)
        check = partial(self._plane.check_model_ready, info.manifest.name)
        return pb.ModelReadyResponse(ready=_holds(check))

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: Any
    ) -> pb.ServerMetadataResponse:
        """Name, version and protocol extensions of the server."""
        found = server_metadata(is_managed=self._repository is not None)
        return pb.ServerMetadataResponse(**found)

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Any
    ) -> pb.ModelMetadataResponse:
        """Inputs and outputs of a model."""
        refuse_unknown_fields(request)
        found = model_metadata(find_model(self._plane, request.name, request.version))
        return ParseDict(found, pb.ModelMetadataResponse())

    async def ModelConfig(  # noqa: N802
        self, request: pb.ModelConfigRequest, context: Any
    ) -> pb.ModelConfigResponse:
        """Inputs and outputs of a model, as a Triton configuration."""
        refuse_unknown_fields(request)
        found = model_config(find_model(self._plane, request.name, request.version))
        return ParseDict({"config": found}, pb.ModelConfigResponse())

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, context: Any
    ) -> pb.ModelStatisticsResponse:
        """Statistics of models since they were loaded."""
        refuse_unknown_fields(request)
        found = statistics(self._plane, request.name, request.version)
        return ParseDict(found, pb.ModelStatisticsResponse())

    async def ModelInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, context: Any
    ) -> pb.ModelInferResponse:
        """Embeddings of images and texts, as tensors."""
        read = partial(to_infer, request, self._plane.limits)
        # Every number in a list becomes a Python object, and an image has a million.
        is_small = num_listed(request) <= READ_AT_ONCE
        message = read() if is_small else await self._plane.offload(read)
        answer = await infer(self._plane, message, current_call.get())
        return from_infer(answer, request.id)

    async def ModelStreamInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, context: Any
    ) -> pb.ModelStreamInferResponse:
        """Answer one request of a stream; the interceptor keeps the order."""
        answer = await self.ModelInfer(request, context)
        answer.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=answer)

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, context: Any
    ) -> pb.RepositoryIndexResponse:
        """Every model that is served, was served, or is in the model repository."""
        refuse_unknown_fields(request)
        repository = managed_repository(self._repository)
        states = await self._plane.offload(repository.index)
        entries = repository_index(states, only_ready=request.ready)
        return ParseDict({"models": entries}, pb.RepositoryIndexResponse())

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, context: Any
    ) -> pb.RepositoryModelLoadResponse:
        """Serve a package under a name; returns once the model answers requests."""
        refuse_unknown_fields(request)
        repository = managed_repository(self._repository)
        self._plane.admission.check_open()
        package = check_load(to_parameters(request.parameters))
        await repository.load(request.model_name, package)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, context: Any
    ) -> pb.RepositoryModelUnloadResponse:
        """Stop serving a model; requests in progress are still answered."""
        refuse_unknown_fields(request)
        repository = managed_repository(self._repository)
        self._plane.admission.check_open()
        await repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()


def _holds(check: Any) -> bool:
    try:
        check()
    except Unavailable:
        return False
    return True


def to_infer(request: pb.ModelInferRequest, limits: RequestLimits) -> InferRequest:
    """Read a request.

    Raises:
        InvalidRequest: A field, a tensor or a parameter is invalid or unknown.
        RequestTooLarge: A tensor has too many items.
    """
    refuse_unknown_fields(request)
    for index, output in enumerate(request.outputs):
        _refuse_parameters(output.parameters, f"outputs[{index}].parameters")
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs; give one "
            "for each, or none.",
            code="wrong_size",
            param="raw_input_contents",
        )
    inputs: list[InputTensor] = []
    for index, tensor in enumerate(request.inputs):
        param = f"inputs[{index}]"
        _refuse_parameters(tensor.parameters, f"{param}.parameters")
        head = check_head(tensor.name, tensor.datatype, tensor.shape, limits, param=param)
        inputs.append(_raw(head, tensor, raw[index]) if raw else _typed(head, tensor.contents))
    return InferRequest(
        model=request.model_name,
        version=request.model_version,
        inputs=inputs,
        outputs=[output.name for output in request.outputs],
        parameters=to_parameters(request.parameters),
    )


def num_listed(request: pb.ModelInferRequest) -> int:
    """Count the numbers that are in lists and not raw."""
    contents = [tensor.contents for tensor in request.inputs]
    return sum(len(c.uint_contents) + len(c.fp32_contents) for c in contents)


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
                f"{head.param}: {head.spec.datatype} elements belong in {wanted}, not in "
                f"{field.name}.",
                param=f"{head.param}.contents.{field.name}",
            )
    values = getattr(contents, wanted)
    if wanted == "bytes_contents":
        return read_items(head, values)
    return read_values(head, list(values))


def _refuse_parameters(parameters: Mapping[str, Any], path: str) -> None:
    for name in parameters.keys() - REST_PARAMETERS:
        param = f"{path}.{name[:100]}"
        raise InvalidRequest(f"{param}: unknown field.", code="unknown_field", param=param)


def to_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a map of parameters."""
    values = {}
    for name, parameter in given.items():
        field = parameter.WhichOneof("parameter_choice")
        if field is None:
            raise InvalidRequest(
                f"The parameter {name[:100]!r} has no value.", param=f"parameters.{name[:100]}"
            )
        values[name] = getattr(parameter, field)
    return values


def from_infer(answer: InferAnswer, request_id: str) -> pb.ModelInferResponse:
    """Write an answer with raw elements."""
    tensor = pb.ModelInferResponse.InferOutputTensor
    arrays = answer.outputs.items()
    return pb.ModelInferResponse(
        model_name=answer.model,
        model_version=VERSION,
        id=request_id,
        outputs=[tensor(name=n, datatype="FP32", shape=array.shape) for n, array in arrays],
        raw_output_contents=[array.astype("<f4", copy=False).tobytes() for _, array in arrays],
    )


def stream_error(
    error: ServiceError, request: pb.ModelInferRequest | None, call: Call
) -> pb.ModelStreamInferResponse:
    """The answer of a stream to a failed request."""
    request_id = request.id if request is not None else ""
    return pb.ModelStreamInferResponse(
        error_message=error.message, infer_response=pb.ModelInferResponse(id=request_id)
    )
