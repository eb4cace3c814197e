"""The RPCs: convert, call the data plane, convert. The interceptors handle calls and errors."""

from collections.abc import Callable, Coroutine
from typing import Any

from google.protobuf.message import Message

from service.call import current_call
from service.data_plane import DataPlane
from service.grpc import converters as wire
from service.grpc.generated import encoder_service_pb2, stream_pb2
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceServicer
from service.grpc.stream import begin_item

Handler = Callable[..., Coroutine[Any, Any, Any]]


def _handler(read: Callable[[Message], Any], method: str, write: wire.Writer) -> Handler:
    """An RPC that converts its request, calls this method of the data plane, and converts back."""

    async def answer(
        servicer: "EncoderServicer", request: Message, context: Any, message: Any = None
    ) -> Any:
        compute = getattr(servicer._plane, method)
        return write(await compute(read(request), current_call.get()), message)

    return answer


class EncoderServicer(EncoderServiceServicer):
    """`tipserve.v1.EncoderService` over one data plane."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    EmbedImages = _handler(wire.to_embed_images, "embed_images", wire.from_embed_images)
    EmbedTexts = _handler(wire.to_embed_texts, "embed_texts", wire.from_embed_texts)
    SegmentImages = _handler(wire.to_segment_images, "segment_images", wire.from_segment_images)
    ClassifyImages = _handler(wire.to_classify_images, "classify_images", wire.from_classify_images)
    VisualizeFeatures = _handler(
        wire.to_visualize_features, "visualize_features", wire.from_visualize_features
    )
    EstimateDepth = _handler(wire.to_estimate_depth, "estimate_maps", wire.from_depth)
    EstimateNormals = _handler(wire.to_estimate_normals, "estimate_maps", wire.from_normals)

    async def Stream(  # noqa: N802 - named by the contract, as all below
        self, request: stream_pb2.StreamRequest, context: Any
    ) -> stream_pb2.StreamResponse:
        """Answer one request of a stream; the interceptor reads and writes them in order."""
        call = current_call.get()
        kind = begin_item(request, call)
        answer = stream_pb2.StreamResponse(id=request.id, index=call.item or 0)
        rpc = kind.title().replace("_", "")  # EmbedImages for embed_images
        await getattr(self, rpc)(getattr(request, kind), context, getattr(answer, kind))
        return answer

    async def GetModel(  # noqa: N802
        self, request: encoder_service_pb2.GetModelRequest, context: Any
    ) -> encoder_service_pb2.GetModelResponse:
        """Describe one served model."""
        wire.refuse_unknown_fields(request)
        info = self._plane.get_model(request.name or None)
        return encoder_service_pb2.GetModelResponse(model=wire.from_model(info))

    async def ListModels(  # noqa: N802
        self, request: encoder_service_pb2.ListModelsRequest, context: Any
    ) -> encoder_service_pb2.ListModelsResponse:
        """Describe all served models."""
        wire.refuse_unknown_fields(request)
        infos = self._plane.list_models()
        return encoder_service_pb2.ListModelsResponse(models=map(wire.from_model, infos))
