"""The RPCs of the Open Inference Protocol: convert, ask the core, convert."""

from dataclasses import asdict
from functools import partial
from typing import Any

from google.protobuf.json_format import ParseDict

from service.call import Call, current_call
from service.data_plane import DataPlane
from service.errors import NotSupported, ServiceError, Unavailable
from service.grpc.generated import open_inference_pb2 as pb
from service.grpc.generated.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from service.grpc.open_inference.converters import (
    from_infer,
    from_model,
    num_listed,
    to_config,
    to_infer,
    to_parameters,
)
from service.grpc.unknown_fields import refuse_unknown_fields
from service.models.repository import ModelRepository
from service.open_inference.inference import infer
from service.open_inference.management import check_load, check_unload
from service.open_inference.metadata import (
    VERSION,
    find_model,
    model_metadata,
    server_metadata,
)
from service.open_inference.statistics import statistics

# What `tritonclient` sends with requests of a stream; answers always say that they are the last.
FINAL_WISH = "triton_enable_empty_final_response"
READ_AT_ONCE = 4096


class InferenceServicer(GRPCInferenceServiceServicer):
    """`inference.GRPCInferenceService`; without a repository nothing changes what is served."""

    def __init__(self, plane: DataPlane, repository: ModelRepository | None) -> None:
        self._plane = plane
        self._repository = repository

    async def ServerLive(  # noqa: N802 - named by the contract, as all below
        self, request: pb.ServerLiveRequest, context: Any
    ) -> pb.ServerLiveResponse:
        """Whether the process answers, and its device has answered not too long ago."""
        return pb.ServerLiveResponse(live=_holds(self._plane.check_live))

    async def ServerReady(  # noqa: N802
        self, request: pb.ServerReadyRequest, context: Any
    ) -> pb.ServerReadyResponse:
        """Whether requests are taken."""
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
        """What the server is, and which extensions of the protocol it has."""
        found = server_metadata(is_managed=self._repository is not None)
        return pb.ServerMetadataResponse(**asdict(found))

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Any
    ) -> pb.ModelMetadataResponse:
        """What a model takes and gives."""
        refuse_unknown_fields(request)
        return from_model(model_metadata(find_model(self._plane, request.name, request.version)))

    async def ModelConfig(  # noqa: N802
        self, request: pb.ModelConfigRequest, context: Any
    ) -> pb.ModelConfigResponse:
        """The same in the terms of a configuration."""
        refuse_unknown_fields(request)
        info = find_model(self._plane, request.name, request.version)
        return pb.ModelConfigResponse(config=to_config(model_metadata(info)))

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, context: Any
    ) -> pb.ModelStatisticsResponse:
        """What models have done since they were loaded."""
        refuse_unknown_fields(request)
        document = statistics(self._plane, request.name, request.version)
        return ParseDict(document, pb.ModelStatisticsResponse())

    async def ModelInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, context: Any
    ) -> pb.ModelInferResponse:
        """Embeddings of images and texts, as tensors."""
        read = partial(to_infer, request, self._plane.limits)
        # Numbers in lists become objects first, and an image has a million.
        is_small = num_listed(request) <= READ_AT_ONCE
        message = read() if is_small else await self._plane.offload(read)
        answer = await infer(self._plane, message, current_call.get())
        return from_infer(answer, request.id)

    async def ModelStreamInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, context: Any
    ) -> pb.ModelStreamInferResponse:
        """One request of a stream: the interceptor reads them, and writes the answers in order."""
        if request.parameters[FINAL_WISH].WhichOneof("parameter_choice") in {None, "bool_param"}:
            del request.parameters[FINAL_WISH]
        answer = await self.ModelInfer(request, context)
        answer.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=answer)

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, context: Any
    ) -> pb.RepositoryIndexResponse:
        """Every model that is served, was served, or lies in the model repository."""
        refuse_unknown_fields(request)
        repository = self._managed()
        states = await self._plane.offload(repository.index)
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=state.name, version=VERSION, state=state.state, reason=state.reason
                )
                for state in states
                if state.state == "READY" or not request.ready
            ]
        )

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, context: Any
    ) -> pb.RepositoryModelLoadResponse:
        """Serve a package under a name; the answer comes once it answers requests."""
        refuse_unknown_fields(request)
        repository = self._managed()
        self._plane.door.check()
        package = check_load(to_parameters(request.parameters))
        await repository.load(request.model_name, package)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, context: Any
    ) -> pb.RepositoryModelUnloadResponse:
        """Serve a model no longer; requests that it has are still answered."""
        refuse_unknown_fields(request)
        repository = self._managed()
        self._plane.door.check()
        check_unload(to_parameters(request.parameters))
        await repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _managed(self) -> ModelRepository:
        if self._repository is None:
            raise NotSupported(
                "Models cannot be managed here: the server's setting enable_management is off.",
                code="management_not_enabled",
            )
        return self._repository


def _holds(check: Any) -> bool:
    """Whether a check for probes passes."""
    try:
        check()
    except Unavailable:
        return False
    return True


def stream_error(
    error: ServiceError, request: pb.ModelInferRequest | None, call: Call
) -> pb.ModelStreamInferResponse:
    """What a stream answers to a request that cannot be answered."""
    request_id = request.id if request is not None else ""
    return pb.ModelStreamInferResponse(
        error_message=error.message, infer_response=pb.ModelInferResponse(id=request_id)
    )
