from . import dense_pb2 as _dense_pb2
from . import image_pb2 as _image_pb2
from . import item_error_pb2 as _item_error_pb2
from . import segment_pb2 as _segment_pb2
from . import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FeatureKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_KIND_UNSPECIFIED: _ClassVar[FeatureKind]
    FEATURE_KIND_COLORS: _ClassVar[FeatureKind]
    FEATURE_KIND_COMPONENT: _ClassVar[FeatureKind]
    FEATURE_KIND_GROUPS: _ClassVar[FeatureKind]

class FeatureScope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_SCOPE_UNSPECIFIED: _ClassVar[FeatureScope]
    FEATURE_SCOPE_IMAGE: _ClassVar[FeatureScope]
    FEATURE_SCOPE_REQUEST: _ClassVar[FeatureScope]
FEATURE_KIND_UNSPECIFIED: FeatureKind
FEATURE_KIND_COLORS: FeatureKind
FEATURE_KIND_COMPONENT: FeatureKind
FEATURE_KIND_GROUPS: FeatureKind
FEATURE_SCOPE_UNSPECIFIED: FeatureScope
FEATURE_SCOPE_IMAGE: FeatureScope
FEATURE_SCOPE_REQUEST: FeatureScope

class VisualizeFeaturesRequest(_message.Message):
    __slots__ = ("model", "images", "kind", "features", "scope", "group_count", "seed", "resolution", "fit", "size", "partial")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    GROUP_COUNT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    images: _containers.RepeatedCompositeFieldContainer[_image_pb2.Image]
    kind: FeatureKind
    features: _segment_pb2.DenseFeatures
    scope: FeatureScope
    group_count: int
    seed: int
    resolution: int
    fit: _image_pb2.Fit
    size: _dense_pb2.MapSize
    partial: bool
    def __init__(self, model: _Optional[str] = ..., images: _Optional[_Iterable[_Union[_image_pb2.Image, _Mapping]]] = ..., kind: _Optional[_Union[FeatureKind, str]] = ..., features: _Optional[_Union[_segment_pb2.DenseFeatures, str]] = ..., scope: _Optional[_Union[FeatureScope, str]] = ..., group_count: _Optional[int] = ..., seed: _Optional[int] = ..., resolution: _Optional[int] = ..., fit: _Optional[_Union[_image_pb2.Fit, str]] = ..., size: _Optional[_Union[_dense_pb2.MapSize, str]] = ..., partial: bool = ...) -> None: ...

class FeatureMap(_message.Message):
    __slots__ = ("features",)
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    features: _tensor_pb2.Tensor
    def __init__(self, features: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class VisualizeFeaturesResponse(_message.Message):
    __slots__ = ("model", "maps", "errors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MAPS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    maps: _containers.RepeatedCompositeFieldContainer[FeatureMap]
    errors: _containers.RepeatedCompositeFieldContainer[_item_error_pb2.ItemError]
    def __init__(self, model: _Optional[str] = ..., maps: _Optional[_Iterable[_Union[FeatureMap, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[_item_error_pb2.ItemError, _Mapping]]] = ...) -> None: ...
