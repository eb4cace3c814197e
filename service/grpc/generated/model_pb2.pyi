from . import embed_pb2 as _embed_pb2
from . import segment_pb2 as _segment_pb2
from . import text_pb2 as _text_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Limits(_message.Message):
    __slots__ = ("max_image_count", "max_text_count", "max_class_count", "max_image_bytes", "max_image_pixels", "max_request_bytes")
    MAX_IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_CLASS_COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_image_count: int
    max_text_count: int
    max_class_count: int
    max_image_bytes: int
    max_image_pixels: int
    max_request_bytes: int
    def __init__(self, max_image_count: _Optional[int] = ..., max_text_count: _Optional[int] = ..., max_class_count: _Optional[int] = ..., max_image_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_request_bytes: _Optional[int] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("task", "split", "row", "metric", "value", "low", "high", "item_count")
    TASK_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    task: str
    split: str
    row: str
    metric: str
    value: float
    low: float
    high: float
    item_count: int
    def __init__(self, task: _Optional[str] = ..., split: _Optional[str] = ..., row: _Optional[str] = ..., metric: _Optional[str] = ..., value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., item_count: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "variant", "embed_dim", "patch_size", "native_size", "min_size", "max_size", "size_multiple", "max_text_tokens", "outputs", "default_features", "default_templates", "runtime", "precision", "limits", "scores", "licence", "buckets", "device", "runtime_reason", "parity", "package_digest", "default_mode")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    EMBED_DIM_FIELD_NUMBER: _ClassVar[int]
    PATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    NATIVE_SIZE_FIELD_NUMBER: _ClassVar[int]
    MIN_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_SIZE_FIELD_NUMBER: _ClassVar[int]
    SIZE_MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FEATURES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_REASON_FIELD_NUMBER: _ClassVar[int]
    PARITY_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_MODE_FIELD_NUMBER: _ClassVar[int]
    name: str
    variant: str
    embed_dim: int
    patch_size: int
    native_size: int
    min_size: int
    max_size: int
    size_multiple: int
    max_text_tokens: int
    outputs: _containers.RepeatedScalarFieldContainer[_embed_pb2.ImageOutput]
    default_features: _segment_pb2.DenseFeatures
    default_templates: _text_pb2.TemplateSet
    runtime: str
    precision: str
    limits: Limits
    scores: _containers.RepeatedCompositeFieldContainer[Score]
    licence: str
    buckets: _containers.RepeatedCompositeFieldContainer[Bucket]
    device: str
    runtime_reason: str
    parity: _containers.RepeatedCompositeFieldContainer[Parity]
    package_digest: str
    default_mode: _segment_pb2.SegmentMode
    def __init__(self, name: _Optional[str] = ..., variant: _Optional[str] = ..., embed_dim: _Optional[int] = ..., patch_size: _Optional[int] = ..., native_size: _Optional[int] = ..., min_size: _Optional[int] = ..., max_size: _Optional[int] = ..., size_multiple: _Optional[int] = ..., max_text_tokens: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[_embed_pb2.ImageOutput, str]]] = ..., default_features: _Optional[_Union[_segment_pb2.DenseFeatures, str]] = ..., default_templates: _Optional[_Union[_text_pb2.TemplateSet, str]] = ..., runtime: _Optional[str] = ..., precision: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., scores: _Optional[_Iterable[_Union[Score, _Mapping]]] = ..., licence: _Optional[str] = ..., buckets: _Optional[_Iterable[_Union[Bucket, _Mapping]]] = ..., device: _Optional[str] = ..., runtime_reason: _Optional[str] = ..., parity: _Optional[_Iterable[_Union[Parity, _Mapping]]] = ..., package_digest: _Optional[str] = ..., default_mode: _Optional[_Union[_segment_pb2.SegmentMode, str]] = ...) -> None: ...

class Parity(_message.Message):
    __slots__ = ("file", "precision", "reference", "max_abs_diff", "min_cosine_cls", "min_cosine_patches", "mask_agreement", "passed")
    FILE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    MAX_ABS_DIFF_FIELD_NUMBER: _ClassVar[int]
    MIN_COSINE_CLS_FIELD_NUMBER: _ClassVar[int]
    MIN_COSINE_PATCHES_FIELD_NUMBER: _ClassVar[int]
    MASK_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    file: str
    precision: str
    reference: str
    max_abs_diff: float
    min_cosine_cls: float
    min_cosine_patches: float
    mask_agreement: float
    passed: bool
    def __init__(self, file: _Optional[str] = ..., precision: _Optional[str] = ..., reference: _Optional[str] = ..., max_abs_diff: _Optional[float] = ..., min_cosine_cls: _Optional[float] = ..., min_cosine_patches: _Optional[float] = ..., mask_agreement: _Optional[float] = ..., passed: bool = ...) -> None: ...

class Bucket(_message.Message):
    __slots__ = ("height", "width", "max_batch_image_count", "run_seconds", "peak_bytes")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    RUN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    max_batch_image_count: int
    run_seconds: float
    peak_bytes: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., max_batch_image_count: _Optional[int] = ..., run_seconds: _Optional[float] = ..., peak_bytes: _Optional[int] = ...) -> None: ...
