from . import image_pb2 as _image_pb2
from . import item_error_pb2 as _item_error_pb2
from . import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MapSize(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MAP_SIZE_UNSPECIFIED: _ClassVar[MapSize]
    MAP_SIZE_IMAGE: _ClassVar[MapSize]
    MAP_SIZE_MODEL: _ClassVar[MapSize]
MAP_SIZE_UNSPECIFIED: MapSize
MAP_SIZE_IMAGE: MapSize
MAP_SIZE_MODEL: MapSize

class EstimateDepthRequest(_message.Message):
    __slots__ = ("model", "images", "resolution", "fit", "size", "partial")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    images: _containers.RepeatedCompositeFieldContainer[_image_pb2.Image]
    resolution: int
    fit: _image_pb2.Fit
    size: MapSize
    partial: bool
    def __init__(self, model: _Optional[str] = ..., images: _Optional[_Iterable[_Union[_image_pb2.Image, _Mapping]]] = ..., resolution: _Optional[int] = ..., fit: _Optional[_Union[_image_pb2.Fit, str]] = ..., size: _Optional[_Union[MapSize, str]] = ..., partial: bool = ...) -> None: ...

class DepthMap(_message.Message):
    __slots__ = ("depth",)
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    depth: _tensor_pb2.Tensor
    def __init__(self, depth: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class EstimateDepthResponse(_message.Message):
    __slots__ = ("model", "maps", "errors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MAPS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    maps: _containers.RepeatedCompositeFieldContainer[DepthMap]
    errors: _containers.RepeatedCompositeFieldContainer[_item_error_pb2.ItemError]
    def __init__(self, model: _Optional[str] = ..., maps: _Optional[_Iterable[_Union[DepthMap, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[_item_error_pb2.ItemError, _Mapping]]] = ...) -> None: ...

class EstimateNormalsRequest(_message.Message):
    __slots__ = ("model", "images", "resolution", "fit", "size", "partial")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    images: _containers.RepeatedCompositeFieldContainer[_image_pb2.Image]
    resolution: int
    fit: _image_pb2.Fit
    size: MapSize
    partial: bool
    def __init__(self, model: _Optional[str] = ..., images: _Optional[_Iterable[_Union[_image_pb2.Image, _Mapping]]] = ..., resolution: _Optional[int] = ..., fit: _Optional[_Union[_image_pb2.Fit, str]] = ..., size: _Optional[_Union[MapSize, str]] = ..., partial: bool = ...) -> None: ...

class NormalMap(_message.Message):
    __slots__ = ("normals",)
    NORMALS_FIELD_NUMBER: _ClassVar[int]
    normals: _tensor_pb2.Tensor
    def __init__(self, normals: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class EstimateNormalsResponse(_message.Message):
    __slots__ = ("model", "maps", "errors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MAPS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    maps: _containers.RepeatedCompositeFieldContainer[NormalMap]
    errors: _containers.RepeatedCompositeFieldContainer[_item_error_pb2.ItemError]
    def __init__(self, model: _Optional[str] = ..., maps: _Optional[_Iterable[_Union[NormalMap, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[_item_error_pb2.ItemError, _Mapping]]] = ...) -> None: ...
