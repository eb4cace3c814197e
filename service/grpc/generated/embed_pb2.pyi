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

class ImageOutput(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_OUTPUT_UNSPECIFIED: _ClassVar[ImageOutput]
    IMAGE_OUTPUT_PATCHES: _ClassVar[ImageOutput]
    IMAGE_OUTPUT_VALUES: _ClassVar[ImageOutput]
    IMAGE_OUTPUT_CLS1: _ClassVar[ImageOutput]
    IMAGE_OUTPUT_CLS2: _ClassVar[ImageOutput]
    IMAGE_OUTPUT_DEPTH: _ClassVar[ImageOutput]
    IMAGE_OUTPUT_NORMALS: _ClassVar[ImageOutput]
    IMAGE_OUTPUT_SEGMENTATION: _ClassVar[ImageOutput]

class VectorType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VECTOR_TYPE_UNSPECIFIED: _ClassVar[VectorType]
    VECTOR_TYPE_FLOAT32: _ClassVar[VectorType]
    VECTOR_TYPE_FLOAT16: _ClassVar[VectorType]
    VECTOR_TYPE_INT8: _ClassVar[VectorType]
IMAGE_OUTPUT_UNSPECIFIED: ImageOutput
IMAGE_OUTPUT_PATCHES: ImageOutput
IMAGE_OUTPUT_VALUES: ImageOutput
IMAGE_OUTPUT_CLS1: ImageOutput
IMAGE_OUTPUT_CLS2: ImageOutput
IMAGE_OUTPUT_DEPTH: ImageOutput
IMAGE_OUTPUT_NORMALS: ImageOutput
IMAGE_OUTPUT_SEGMENTATION: ImageOutput
VECTOR_TYPE_UNSPECIFIED: VectorType
VECTOR_TYPE_FLOAT32: VectorType
VECTOR_TYPE_FLOAT16: VectorType
VECTOR_TYPE_INT8: VectorType

class EmbedImagesRequest(_message.Message):
    __slots__ = ("model", "images", "outputs", "normalize", "resolution", "fit", "vector_type", "partial")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    VECTOR_TYPE_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    images: _containers.RepeatedCompositeFieldContainer[_image_pb2.Image]
    outputs: _containers.RepeatedScalarFieldContainer[ImageOutput]
    normalize: bool
    resolution: int
    fit: _image_pb2.Fit
    vector_type: VectorType
    partial: bool
    def __init__(self, model: _Optional[str] = ..., images: _Optional[_Iterable[_Union[_image_pb2.Image, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[ImageOutput, str]]] = ..., normalize: bool = ..., resolution: _Optional[int] = ..., fit: _Optional[_Union[_image_pb2.Fit, str]] = ..., vector_type: _Optional[_Union[VectorType, str]] = ..., partial: bool = ...) -> None: ...

class ImageEmbedding(_message.Message):
    __slots__ = ("patches", "values", "cls1", "cls2", "depth", "normals", "segmentation")
    PATCHES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    CLS1_FIELD_NUMBER: _ClassVar[int]
    CLS2_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    NORMALS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTATION_FIELD_NUMBER: _ClassVar[int]
    patches: _tensor_pb2.Tensor
    values: _tensor_pb2.Tensor
    cls1: _tensor_pb2.Tensor
    cls2: _tensor_pb2.Tensor
    depth: _tensor_pb2.Tensor
    normals: _tensor_pb2.Tensor
    segmentation: _tensor_pb2.Tensor
    def __init__(self, patches: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., cls1: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., cls2: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., depth: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., normals: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., segmentation: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class EmbedImagesResponse(_message.Message):
    __slots__ = ("model", "embeddings", "errors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    embeddings: _containers.RepeatedCompositeFieldContainer[ImageEmbedding]
    errors: _containers.RepeatedCompositeFieldContainer[_item_error_pb2.ItemError]
    def __init__(self, model: _Optional[str] = ..., embeddings: _Optional[_Iterable[_Union[ImageEmbedding, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[_item_error_pb2.ItemError, _Mapping]]] = ...) -> None: ...

class EmbedTextsRequest(_message.Message):
    __slots__ = ("model", "texts", "templates", "normalize", "vector_type", "partial")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_TYPE_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    templates: _text_pb2.Templates
    normalize: bool
    vector_type: VectorType
    partial: bool
    def __init__(self, model: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., templates: _Optional[_Union[_text_pb2.Templates, _Mapping]] = ..., normalize: bool = ..., vector_type: _Optional[_Union[VectorType, str]] = ..., partial: bool = ...) -> None: ...

class EmbedTextsResponse(_message.Message):
    __slots__ = ("model", "embeddings", "errors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    embeddings: _tensor_pb2.Tensor
    errors: _containers.RepeatedCompositeFieldContainer[_item_error_pb2.ItemError]
    def __init__(self, model: _Optional[str] = ..., embeddings: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., errors: _Optional[_Iterable[_Union[_item_error_pb2.ItemError, _Mapping]]] = ...) -> None: ...
