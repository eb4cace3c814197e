"""The Open Inference Protocol over gRPC."""

from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from service.call import Call, current_call
from service.data_plane import DataPlane
from service.errors import InvalidRequest, ServiceError, Unavailable
from service.grpc.converters import refuse_unknown_fields
from service.grpc.generated import open_inference_pb2 as pb
from service.grpc.generated.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from service.messages import ModelInfo, RequestLimits
from service.models.registry import ModelRepository, managed_repository
from service.open_inference import inference, metadata
from service.open_inference.tensors import InputTensor, TensorHead, read_tensor

# Field of `contents` that has the elements of each datatype.
CONTENTS: Final = {"BYTES": "bytes_contents", "UINT8": "uint_contents", "FP32": "fp32_contents"}
# Of tensors over REST. KServe's client sends them over gRPC, too, where they say nothing.
REST_PARAMETERS: Final = {"binary_data", "binary_data_size"}


def _handler(
    response: Callable[[], Message],
    describe: Callable[["InferenceServicer", Any], metadata.Document],
) -> Callable[[Any, Any, Any], Coroutine[Any, Any, Any]]:
    """An RPC that answers with a document; its names are those of the response's fields."""

    async def answer(servicer: "InferenceServicer", request: Message, context: Any) -> Message:
        refuse_unknown_fields(request)
        return ParseDict(describe(servicer, request), response())

    return answer


def _holds(check: Callable[..., None], *names: str) -> bool:
    try:
        check(*names)
    except Unavailable:
        return False
    return True


class InferenceServicer(GRPCInferenceServiceServicer):
    """`inference.GRPCInferenceService`; without a repository models cannot be managed."""

    def __init__(self, plane: DataPlane, repository: ModelRepository | None) -> None:
        self._plane = plane
        self._repository = repository

    ServerLive = _handler(
        pb.ServerLiveResponse, lambda self, _: {"live": _holds(self._plane.check_live)}
    )
    ServerReady = _handler(
        pb.ServerReadyResponse, lambda self, _: {"ready": _holds(self._plane.check_ready)}
    )
    ModelReady = _handler(
        pb.ModelReadyResponse,
        lambda self, asked: {
            "ready": _holds(self._plane.check_model_ready, self._find(asked).manifest.name)
        },
    )
    ServerMetadata = _handler(
        pb.ServerMetadataResponse,
        lambda self, _: metadata.server_metadata(is_managed=self._repository is not None),
    )
    ModelMetadata = _handler(
        pb.ModelMetadataResponse, lambda self, asked: metadata.model_metadata(self._find(asked))
    )
    ModelConfig = _handler(
        pb.ModelConfigResponse,
        lambda self, asked: {"config": metadata.model_config(self._find(asked))},
    )
    ModelStatistics = _handler(
        pb.ModelStatisticsResponse,
        lambda self, asked: metadata.statistics(self._plane, asked.name, asked.version),
    )

    def _find(self, asked: Any) -> ModelInfo:
        return metadata.find_model(self._plane, asked.name, asked.version)

    async def ModelInfer(  # noqa: N802 - named by the contract, as all below
        self, request: pb.ModelInferRequest, context: Any
    ) -> pb.ModelInferResponse:
        """Embeddings of images and texts, as tensors."""
        read = partial(to_infer, request, self._plane.limits)
        # Every number in a list becomes a Python object, and an image has a million.
        message = read() if request.raw_input_contents else await self._plane.offload(read)
        return from_infer(
            await inference.infer(self._plane, message, current_call.get()), request.id
        )

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
        states = await self._plane.offload(managed_repository(self._repository).index)
        entries = metadata.repository_index(states, only_ready=request.ready)
        return ParseDict({"models": entries}, pb.RepositoryIndexResponse())

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, context: Any
    ) -> pb.RepositoryModelLoadResponse:
        """Serve a package under a name; returns once the model answers requests."""
        repository = self._open_repository(request)
        asked = inference.read_parameters(
            inference.LoadParameters, to_parameters(request.parameters)
        )
        await repository.load(request.model_name, asked.package)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, context: Any
    ) -> pb.RepositoryModelUnloadResponse:
        """Stop serving a model; requests in progress are still answered."""
        await self._open_repository(request).unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _open_repository(self, request: Message) -> ModelRepository:
        refuse_unknown_fields(request)
        repository = managed_repository(self._repository)
        self._plane.admission.check_open()
        return repository


def to_infer(request: pb.ModelInferRequest, limits: RequestLimits) -> inference.InferRequest:
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
    return inference.InferRequest(
        model=request.model_name,
        version=request.model_version,
        inputs=[
            _read_input(tensor, f"inputs[{index}]", raw[index] if raw else None, limits)
            for index, tensor in enumerate(request.inputs)
        ],
        outputs=[output.name for output in request.outputs],
        parameters=inference.read_parameters(
            inference.Parameters, to_parameters(request.parameters)
        ),
    )


def _read_input(
    tensor: pb.ModelInferRequest.InferInputTensor,
    param: str,
    raw: bytes | None,
    limits: RequestLimits,
) -> InputTensor:
    _refuse_parameters(tensor.parameters, f"{param}.parameters")
    wanted = CONTENTS.get(tensor.datatype, "")
    allowed = {wanted} if raw is None else set()
    # Another datatype is refused with the tensor's name and shape.
    if wanted and {field.name for field, _ in tensor.contents.ListFields()} - allowed:
        raise InvalidRequest(
            f"{param}: give the elements in {wanted} or in raw_input_contents, not both.",
            param=f"{param}.contents",
        )
    content = list(getattr(tensor.contents, wanted, ())) if raw is None else raw
    head = TensorHead(tensor.name, tensor.datatype, tensor.shape, param)
    return read_tensor(head, limits, content)


def _refuse_parameters(parameters: Mapping[str, Any], path: str) -> None:
    for name in parameters.keys() - REST_PARAMETERS:
        param = f"{path}.{name[:100]}"
        raise InvalidRequest(f"{param}: unknown field.", code="unknown_field", param=param)


def to_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a map of parameters.

    Raises:
        InvalidRequest: One has no value.
    """
    values = {}
    for name, parameter in given.items():
        field = parameter.WhichOneof("parameter_choice")
        if field is None:
            param = f"parameters.{name[:100]}"
            raise InvalidRequest(f"The parameter {name[:100]!r} has no value.", param=param)
        values[name] = getattr(parameter, field)
    return values


def from_infer(answer: inference.InferAnswer, request_id: str) -> pb.ModelInferResponse:
    """Write an answer with raw elements."""
    tensor = pb.ModelInferResponse.InferOutputTensor
    arrays = answer.outputs.items()
    return pb.ModelInferResponse(
        model_name=answer.model,
        model_version=metadata.VERSION,
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
