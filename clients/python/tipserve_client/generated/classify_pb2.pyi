from . import image_pb2 as _image_pb2
from . import item_error_pb2 as _item_error_pb2
from . import segment_pb2 as _segment_pb2
from . import text_pb2 as _text_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GlobalFeatures(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GLOBAL_FEATURES_UNSPECIFIED: _ClassVar[GlobalFeatures]
    GLOBAL_FEATURES_CLS1: _ClassVar[GlobalFeatures]
    GLOBAL_FEATURES_CLS2: _ClassVar[GlobalFeatures]
GLOBAL_FEATURES_UNSPECIFIED: GlobalFeatures
GLOBAL_FEATURES_CLS1: GlobalFeatures
GLOBAL_FEATURES_CLS2: GlobalFeatures

class ClassifyImagesRequest(_message.Message):
    __slots__ = ("model", "images", "classes", "templates", "features", "temperature", "top_k", "resolution", "fit", "partial")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    images: _containers.RepeatedCompositeFieldContainer[_image_pb2.Image]
    classes: _containers.RepeatedCompositeFieldContainer[_segment_pb2.SegmentClass]
    templates: _text_pb2.Templates
    features: GlobalFeatures
    temperature: float
    top_k: int
    resolution: int
    fit: _image_pb2.Fit
    partial: bool
    def __init__(self, model: _Optional[str] = ..., images: _Optional[_Iterable[_Union[_image_pb2.Image, _Mapping]]] = ..., classes: _Optional[_Iterable[_Union[_segment_pb2.SegmentClass, _Mapping]]] = ..., templates: _Optional[_Union[_text_pb2.Templates, _Mapping]] = ..., features: _Optional[_Union[GlobalFeatures, str]] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., resolution: _Optional[int] = ..., fit: _Optional[_Union[_image_pb2.Fit, str]] = ..., partial: bool = ...) -> None: ...

class ClassScore(_message.Message):
    __slots__ = ("label", "name", "probability", "cosine")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    COSINE_FIELD_NUMBER: _ClassVar[int]
    label: int
    name: str
    probability: float
    cosine: float
    def __init__(self, label: _Optional[int] = ..., name: _Optional[str] = ..., probability: _Optional[float] = ..., cosine: _Optional[float] = ...) -> None: ...

class Classification(_message.Message):
    __slots__ = ("classes",)
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedCompositeFieldContainer[ClassScore]
    def __init__(self, classes: _Optional[_Iterable[_Union[ClassScore, _Mapping]]] = ...) -> None: ...

class ClassifyImagesResponse(_message.Message):
    __slots__ = ("model", "classifications", "errors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATIONS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    classifications: _containers.RepeatedCompositeFieldContainer[Classification]
    errors: _containers.RepeatedCompositeFieldContainer[_item_error_pb2.ItemError]
    def __init__(self, model: _Optional[str] = ..., classifications: _Optional[_Iterable[_Union[Classification, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[_item_error_pb2.ItemError, _Mapping]]] = ...) -> None: ...
