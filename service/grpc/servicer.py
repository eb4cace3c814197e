"""The RPCs: convert, call the data plane, convert. The interceptors handle calls and errors."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.message import Message

from service.call import current_call
from service.data_plane import DataPlane
from service.grpc.converters import (
    from_classify_images,
    from_depth,
    from_embed_images,
    from_embed_texts,
    from_model,
    from_normals,
    from_segment_images,
    from_visualize_features,
    refuse_unknown_fields,
    to_classify_images,
    to_embed_images,
    to_embed_texts,
    to_estimate_maps,
    to_segment_images,
    to_visualize_features,
)
from service.grpc.generated import (
    classify_pb2,
    dense_pb2,
    embed_pb2,
    encoder_service_pb2,
    features_pb2,
    segment_pb2,
    stream_pb2,
)
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceServicer
from service.grpc.stream import begin_item, stream_answer


class EncoderServicer(EncoderServiceServicer):
    """`tipserve.v1.EncoderService` over one data plane."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        # The method for each kind of request on a stream.
        self._streamed: Mapping[str, Callable[[Any, Any], Awaitable[Message]]] = {
            "embed_images": self.EmbedImages,
            "embed_texts": self.EmbedTexts,
            "segment_images": self.SegmentImages,
            "classify_images": self.ClassifyImages,
            "visualize_features": self.VisualizeFeatures,
            "estimate_depth": self.EstimateDepth,
            "estimate_normals": self.EstimateNormals,
        }

    async def EmbedImages(  # noqa: N802 - named by the contract, as all below
        self, request: embed_pb2.EmbedImagesRequest, context: Any
    ) -> embed_pb2.EmbedImagesResponse:
        """Embed images."""
        message = to_embed_images(request)
        answer = await self._plane.embed_images(message, current_call.get())
        return from_embed_images(answer)

    async def EmbedTexts(  # noqa: N802
        self, request: embed_pb2.EmbedTextsRequest, context: Any
    ) -> embed_pb2.EmbedTextsResponse:
        """Embed texts."""
        message = to_embed_texts(request)
        answer = await self._plane.embed_texts(message, current_call.get())
        return from_embed_texts(answer)

    async def SegmentImages(  # noqa: N802
        self, request: segment_pb2.SegmentImagesRequest, context: Any
    ) -> segment_pb2.SegmentImagesResponse:
        """Segment images by class names."""
        message = to_segment_images(request)
        answer = await self._plane.segment_images(message, current_call.get())
        return from_segment_images(answer)

    async def ClassifyImages(  # noqa: N802
        self, request: classify_pb2.ClassifyImagesRequest, context: Any
    ) -> classify_pb2.ClassifyImagesResponse:
        """Classify images by class names."""
        message = to_classify_images(request)
        answer = await self._plane.classify_images(message, current_call.get())
        return from_classify_images(answer)

    async def VisualizeFeatures(  # noqa: N802
        self, request: features_pb2.VisualizeFeaturesRequest, context: Any
    ) -> features_pb2.VisualizeFeaturesResponse:
        """Visualize the patch embeddings of images."""
        message = to_visualize_features(request)
        answer = await self._plane.visualize_features(message, current_call.get())
        return from_visualize_features(answer)

    async def EstimateDepth(  # noqa: N802
        self, request: dense_pb2.EstimateDepthRequest, context: Any
    ) -> dense_pb2.EstimateDepthResponse:
        """Estimate the depth of every pixel."""
        message = to_estimate_maps(request, "depth")
        answer = await self._plane.estimate_maps(message, current_call.get())
        return from_depth(answer)

    async def EstimateNormals(  # noqa: N802
        self, request: dense_pb2.EstimateNormalsRequest, context: Any
    ) -> dense_pb2.EstimateNormalsResponse:
        """Estimate the surface normal of every pixel."""
        message = to_estimate_maps(request, "normals")
        answer = await self._plane.estimate_maps(message, current_call.get())
        return from_normals(answer)

    async def Stream(  # noqa: N802
        self, request: stream_pb2.StreamRequest, context: Any
    ) -> stream_pb2.StreamResponse:
        """Answer one request of a stream; the interceptor reads and writes them in order."""
        call = current_call.get()
        kind = begin_item(request, call)
        answer = await self._streamed[kind](getattr(request, kind), context)
        return stream_answer(answer, request, call)

    async def GetModel(  # noqa: N802
        self, request: encoder_service_pb2.GetModelRequest, context: Any
    ) -> encoder_service_pb2.GetModelResponse:
        """Describe one served model."""
        refuse_unknown_fields(request)
        info = self._plane.get_model(request.name or None)
        return encoder_service_pb2.GetModelResponse(model=from_model(info))

    async def ListModels(  # noqa: N802
        self, request: encoder_service_pb2.ListModelsRequest, context: Any
    ) -> encoder_service_pb2.ListModelsResponse:
        """Describe all served models."""
        refuse_unknown_fields(request)
        infos = self._plane.list_models()
        return encoder_service_pb2.ListModelsResponse(models=map(from_model, infos))
