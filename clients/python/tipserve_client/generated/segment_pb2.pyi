from . import image_pb2 as _image_pb2
from . import item_error_pb2 as _item_error_pb2
from . import tensor_pb2 as _tensor_pb2
from . import text_pb2 as _text_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DenseFeatures(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DENSE_FEATURES_UNSPECIFIED: _ClassVar[DenseFeatures]
    DENSE_FEATURES_VALUES: _ClassVar[DenseFeatures]
    DENSE_FEATURES_PATCHES: _ClassVar[DenseFeatures]

class SegmentMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEGMENT_MODE_UNSPECIFIED: _ClassVar[SegmentMode]
    SEGMENT_MODE_WHOLE: _ClassVar[SegmentMode]
    SEGMENT_MODE_SLIDE: _ClassVar[SegmentMode]
DENSE_FEATURES_UNSPECIFIED: DenseFeatures
DENSE_FEATURES_VALUES: DenseFeatures
DENSE_FEATURES_PATCHES: DenseFeatures
SEGMENT_MODE_UNSPECIFIED: SegmentMode
SEGMENT_MODE_WHOLE: SegmentMode
SEGMENT_MODE_SLIDE: SegmentMode

class SegmentClass(_message.Message):
    __slots__ = ("name", "prompts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    prompts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., prompts: _Optional[_Iterable[str]] = ...) -> None: ...

class SegmentImagesRequest(_message.Message):
    __slots__ = ("model", "images", "classes", "templates", "features", "resolution", "fit", "background_threshold", "background_classes", "include_scores", "mode", "partial")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_CLASSES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SCORES_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    images: _containers.RepeatedCompositeFieldContainer[_image_pb2.Image]
    classes: _containers.RepeatedCompositeFieldContainer[SegmentClass]
    templates: _text_pb2.Templates
    features: DenseFeatures
    resolution: int
    fit: _image_pb2.Fit
    background_threshold: float
    background_classes: _containers.RepeatedCompositeFieldContainer[SegmentClass]
    include_scores: bool
    mode: SegmentMode
    partial: bool
    def __init__(self, model: _Optional[str] = ..., images: _Optional[_Iterable[_Union[_image_pb2.Image, _Mapping]]] = ..., classes: _Optional[_Iterable[_Union[SegmentClass, _Mapping]]] = ..., templates: _Optional[_Union[_text_pb2.Templates, _Mapping]] = ..., features: _Optional[_Union[DenseFeatures, str]] = ..., resolution: _Optional[int] = ..., fit: _Optional[_Union[_image_pb2.Fit, str]] = ..., background_threshold: _Optional[float] = ..., background_classes: _Optional[_Iterable[_Union[SegmentClass, _Mapping]]] = ..., include_scores: bool = ..., mode: _Optional[_Union[SegmentMode, str]] = ..., partial: bool = ...) -> None: ...

class ClassArea(_message.Message):
    __slots__ = ("label", "name", "color", "area_share")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    COLOR_FIELD_NUMBER: _ClassVar[int]
    AREA_SHARE_FIELD_NUMBER: _ClassVar[int]
    label: int
    name: str
    color: str
    area_share: float
    def __init__(self, label: _Optional[int] = ..., name: _Optional[str] = ..., color: _Optional[str] = ..., area_share: _Optional[float] = ...) -> None: ...

class Segmentation(_message.Message):
    __slots__ = ("labels", "scores", "classes", "background_share")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_SHARE_FIELD_NUMBER: _ClassVar[int]
    labels: _tensor_pb2.Tensor
    scores: _tensor_pb2.Tensor
    classes: _containers.RepeatedCompositeFieldContainer[ClassArea]
    background_share: float
    def __init__(self, labels: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., scores: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., classes: _Optional[_Iterable[_Union[ClassArea, _Mapping]]] = ..., background_share: _Optional[float] = ...) -> None: ...

class SegmentImagesResponse(_message.Message):
    __slots__ = ("model", "segmentations", "errors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SEGMENTATIONS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    segmentations: _containers.RepeatedCompositeFieldContainer[Segmentation]
    errors: _containers.RepeatedCompositeFieldContainer[_item_error_pb2.ItemError]
    def __init__(self, model: _Optional[str] = ..., segmentations: _Optional[_Iterable[_Union[Segmentation, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[_item_error_pb2.ItemError, _Mapping]]] = ...) -> None: ...
