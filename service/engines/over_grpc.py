"""A server asked over gRPC, by the generated stubs."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from model.winner_map import Labels
from service.engines.engine import (
    Embedding,
    EngineError,
    ImageRefused,
    ModelSummary,
    refusal,
    told_fingerprint,
)
from service.engines.remote import REQUEST_TIMEOUT_S, RemoteEngine, TryAgain
from service.grpc.converters import FITS, MODES, OUTPUTS
from service.grpc.generated import (
    embed_pb2,
    encoder_service_pb2,
    model_pb2,
    segment_pb2,
    tensor_pb2,
)
from service.grpc.generated.encoder_service_pb2_grpc import EncoderServiceStub
from service.messages import EmbedImagesRequest, SegmentClass, SegmentImagesRequest

OUTPUT_NUMBERS: Final = {name: number for number, name in OUTPUTS.items()}
FIT_NUMBERS: Final = {name: number for number, name in FITS.items()}
MODE_NUMBERS: Final = {name: number for number, name in MODES.items()}
DTYPES: Final = {tensor_pb2.DATA_TYPE_FLOAT32: "<f4", tensor_pb2.DATA_TYPE_UINT16: "<u2"}
BUSY: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
UNLIMITED: Final = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class GrpcEngine(RemoteEngine):
    """One server.

    Args:
        address: Host and port.
        api_key: Where the server wants one.
        is_secure: Whether it speaks TLS.
        pause: Waits so many seconds.
    """

    def __init__(
        self,
        address: str,
        api_key: str | None,
        *,
        is_secure: bool = False,
        **more: Callable[[float], None],
    ) -> None:
        super().__init__(**more)
        if not address or "/" in address:
            raise EngineError("--url is an address such as grpc://localhost:8001.")
        self._address = address
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        if is_secure:
            credentials = grpc.ssl_channel_credentials()
            self._channel = grpc.secure_channel(address, credentials, UNLIMITED)
        else:
            self._channel = grpc.insecure_channel(address, UNLIMITED)
        self._stub = EncoderServiceStub(self._channel)

    def embed_once(self, request: EmbedImagesRequest) -> Embedding:
        """As `RemoteEngine` has it."""
        message = embed_pb2.EmbedImagesRequest(
            model=request.model or "",
            outputs=[OUTPUT_NUMBERS[name] for name in request.outputs],
            normalize=request.normalize,
            resolution=request.resolution,
            fit=FIT_NUMBERS[request.fit],
        )
        message.images.add(encoded=request.images[0])
        embedding = self._ask(self._stub.EmbedImages, message).embeddings[0]
        return {name: _array(getattr(embedding, name)) for name in request.outputs}

    def segment_once(self, request: SegmentImagesRequest) -> Labels:
        """As `RemoteEngine` has it."""
        message = segment_pb2.SegmentImagesRequest(
            model=request.model or "",
            classes=[_class_message(c) for c in request.classes],
            background_classes=[_class_message(c) for c in request.background_classes],
            background_threshold=request.background_threshold,
            resolution=request.resolution,
            fit=FIT_NUMBERS[request.fit],
            mode=MODE_NUMBERS[request.mode],
        )
        message.images.add(encoded=request.images[0])
        labels_HW: Labels = _array(
            self._ask(self._stub.SegmentImages, message).segmentations[0].labels
        )
        return labels_HW

    def models_once(self) -> list[ModelSummary]:
        """As `RemoteEngine` has it."""
        answer = self._ask(self._stub.ListModels, encoder_service_pb2.ListModelsRequest())
        return [_summary(told) for told in answer.models]

    def close(self) -> None:
        """As `RemoteEngine` has it."""
        super().close()
        self._channel.close()

    def _ask(self, rpc: Any, message: Any) -> Any:
        try:
            return rpc(message, timeout=REQUEST_TIMEOUT_S, metadata=self._metadata)
        except grpc.RpcError as error:
            raise failure(self._address, error) from error


def failure(address: str, error: Any) -> Exception:
    """What a status other than OK means: try again, a bad image, or the end."""
    metadata = {name: value for name, value in error.trailing_metadata() or ()}
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status_pb2.Status.FromString(
        metadata.get("grpc-status-details-bin", b"")
    ).details:
        detail.Unpack(info)
        detail.Unpack(bad)
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and not info.reason:
        # Says gRPC itself, before the server sees the message.
        return ImageRefused("The image is larger than the server takes.", "request_too_large")
    if error.code() in BUSY:
        pushback_ms = metadata.get("grpc-retry-pushback-ms", "")
        is_told = bool(info.reason)
        message = error.details() if is_told else f"{address} cannot be reached; see that it is up."
        return TryAgain(message, int(pushback_ms) / 1000 if pushback_ms.isdigit() else None)
    param = bad.field_violations[0].field if bad.field_violations else None
    return refusal(error.details(), info.reason, param)


def _array(tensor: tensor_pb2.Tensor) -> Any:
    flat = np.frombuffer(tensor.data, DTYPES[tensor.data_type])
    return flat.reshape(tuple(tensor.shape))


def _class_message(wanted: SegmentClass) -> segment_pb2.SegmentClass:
    return segment_pb2.SegmentClass(name=wanted.name, prompts=wanted.prompts)


def _summary(told: model_pb2.Model) -> ModelSummary:
    parity = ([row.file, row.precision, row.max_abs_diff] for row in told.parity)
    outputs: Mapping[Any, str] = OUTPUTS
    return ModelSummary(
        name=told.name,
        variant=told.variant,
        embed_dim=told.embed_dim,
        patch_size=told.patch_size,
        native_size=told.native_size,
        outputs=tuple(outputs[number] for number in told.outputs),
        runtime=told.runtime,
        precision=told.precision,
        device=told.device,
        fingerprint=told_fingerprint(told.name, told.variant, told.embed_dim, parity),
    )
