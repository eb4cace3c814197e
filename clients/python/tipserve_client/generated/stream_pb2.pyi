import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from . import classify_pb2 as _classify_pb2
from . import dense_pb2 as _dense_pb2
from . import embed_pb2 as _embed_pb2
from . import features_pb2 as _features_pb2
from . import segment_pb2 as _segment_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StreamRequest(_message.Message):
    __slots__ = ("id", "timeout", "embed_images", "embed_texts", "segment_images", "estimate_depth", "estimate_normals", "classify_images", "visualize_features")
    ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    EMBED_IMAGES_FIELD_NUMBER: _ClassVar[int]
    EMBED_TEXTS_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_IMAGES_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_NORMALS_FIELD_NUMBER: _ClassVar[int]
    CLASSIFY_IMAGES_FIELD_NUMBER: _ClassVar[int]
    VISUALIZE_FEATURES_FIELD_NUMBER: _ClassVar[int]
    id: str
    timeout: _duration_pb2.Duration
    embed_images: _embed_pb2.EmbedImagesRequest
    embed_texts: _embed_pb2.EmbedTextsRequest
    segment_images: _segment_pb2.SegmentImagesRequest
    estimate_depth: _dense_pb2.EstimateDepthRequest
    estimate_normals: _dense_pb2.EstimateNormalsRequest
    classify_images: _classify_pb2.ClassifyImagesRequest
    visualize_features: _features_pb2.VisualizeFeaturesRequest
    def __init__(self, id: _Optional[str] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., embed_images: _Optional[_Union[_embed_pb2.EmbedImagesRequest, _Mapping]] = ..., embed_texts: _Optional[_Union[_embed_pb2.EmbedTextsRequest, _Mapping]] = ..., segment_images: _Optional[_Union[_segment_pb2.SegmentImagesRequest, _Mapping]] = ..., estimate_depth: _Optional[_Union[_dense_pb2.EstimateDepthRequest, _Mapping]] = ..., estimate_normals: _Optional[_Union[_dense_pb2.EstimateNormalsRequest, _Mapping]] = ..., classify_images: _Optional[_Union[_classify_pb2.ClassifyImagesRequest, _Mapping]] = ..., visualize_features: _Optional[_Union[_features_pb2.VisualizeFeaturesRequest, _Mapping]] = ...) -> None: ...

class StreamError(_message.Message):
    __slots__ = ("code", "reason", "message", "field", "retry_delay", "request_id")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    field: str
    retry_delay: _duration_pb2.Duration
    request_id: str
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("id", "index", "error", "embed_images", "embed_texts", "segment_images", "estimate_depth", "estimate_normals", "classify_images", "visualize_features")
    ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    EMBED_IMAGES_FIELD_NUMBER: _ClassVar[int]
    EMBED_TEXTS_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_IMAGES_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_NORMALS_FIELD_NUMBER: _ClassVar[int]
    CLASSIFY_IMAGES_FIELD_NUMBER: _ClassVar[int]
    VISUALIZE_FEATURES_FIELD_NUMBER: _ClassVar[int]
    id: str
    index: int
    error: StreamError
    embed_images: _embed_pb2.EmbedImagesResponse
    embed_texts: _embed_pb2.EmbedTextsResponse
    segment_images: _segment_pb2.SegmentImagesResponse
    estimate_depth: _dense_pb2.EstimateDepthResponse
    estimate_normals: _dense_pb2.EstimateNormalsResponse
    classify_images: _classify_pb2.ClassifyImagesResponse
    visualize_features: _features_pb2.VisualizeFeaturesResponse
    def __init__(self, id: _Optional[str] = ..., index: _Optional[int] = ..., error: _Optional[_Union[StreamError, _Mapping]] = ..., embed_images: _Optional[_Union[_embed_pb2.EmbedImagesResponse, _Mapping]] = ..., embed_texts: _Optional[_Union[_embed_pb2.EmbedTextsResponse, _Mapping]] = ..., segment_images: _Optional[_Union[_segment_pb2.SegmentImagesResponse, _Mapping]] = ..., estimate_depth: _Optional[_Union[_dense_pb2.EstimateDepthResponse, _Mapping]] = ..., estimate_normals: _Optional[_Union[_dense_pb2.EstimateNormalsResponse, _Mapping]] = ..., classify_images: _Optional[_Union[_classify_pb2.ClassifyImagesResponse, _Mapping]] = ..., visualize_features: _Optional[_Union[_features_pb2.VisualizeFeaturesResponse, _Mapping]] = ...) -> None: ...
