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

class PromptPool(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROMPT_POOL_UNSPECIFIED: _ClassVar[PromptPool]
    PROMPT_POOL_MEAN: _ClassVar[PromptPool]
    PROMPT_POOL_MAX: _ClassVar[PromptPool]

class SegmentMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEGMENT_MODE_UNSPECIFIED: _ClassVar[SegmentMode]
    SEGMENT_MODE_WHOLE: _ClassVar[SegmentMode]
    SEGMENT_MODE_SLIDE: _ClassVar[SegmentMode]

class MaskSize(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MASK_SIZE_UNSPECIFIED: _ClassVar[MaskSize]
    MASK_SIZE_IMAGE: _ClassVar[MaskSize]
    MASK_SIZE_MODEL: _ClassVar[MaskSize]
    MASK_SIZE_PATCH: _ClassVar[MaskSize]

class Holes(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HOLES_UNSPECIFIED: _ClassVar[Holes]
    HOLES_FILL: _ClassVar[Holes]
    HOLES_KEEP: _ClassVar[Holes]

class SegmentBackground(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEGMENT_BACKGROUND_UNSPECIFIED: _ClassVar[SegmentBackground]
    SEGMENT_BACKGROUND_NONE: _ClassVar[SegmentBackground]
    SEGMENT_BACKGROUND_AUTO: _ClassVar[SegmentBackground]

class SegmentQuality(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEGMENT_QUALITY_UNSPECIFIED: _ClassVar[SegmentQuality]
    SEGMENT_QUALITY_PUBLISHED: _ClassVar[SegmentQuality]
    SEGMENT_QUALITY_FAST: _ClassVar[SegmentQuality]
    SEGMENT_QUALITY_FINE: _ClassVar[SegmentQuality]
DENSE_FEATURES_UNSPECIFIED: DenseFeatures
DENSE_FEATURES_VALUES: DenseFeatures
DENSE_FEATURES_PATCHES: DenseFeatures
PROMPT_POOL_UNSPECIFIED: PromptPool
PROMPT_POOL_MEAN: PromptPool
PROMPT_POOL_MAX: PromptPool
SEGMENT_MODE_UNSPECIFIED: SegmentMode
SEGMENT_MODE_WHOLE: SegmentMode
SEGMENT_MODE_SLIDE: SegmentMode
MASK_SIZE_UNSPECIFIED: MaskSize
MASK_SIZE_IMAGE: MaskSize
MASK_SIZE_MODEL: MaskSize
MASK_SIZE_PATCH: MaskSize
HOLES_UNSPECIFIED: Holes
HOLES_FILL: Holes
HOLES_KEEP: Holes
SEGMENT_BACKGROUND_UNSPECIFIED: SegmentBackground
SEGMENT_BACKGROUND_NONE: SegmentBackground
SEGMENT_BACKGROUND_AUTO: SegmentBackground
SEGMENT_QUALITY_UNSPECIFIED: SegmentQuality
SEGMENT_QUALITY_PUBLISHED: SegmentQuality
SEGMENT_QUALITY_FAST: SegmentQuality
SEGMENT_QUALITY_FINE: SegmentQuality

class SegmentClass(_message.Message):
    __slots__ = ("name", "prompts", "examples", "pool")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    name: str
    prompts: _containers.RepeatedScalarFieldContainer[str]
    examples: _containers.RepeatedCompositeFieldContainer[ClassExample]
    pool: PromptPool
    def __init__(self, name: _Optional[str] = ..., prompts: _Optional[_Iterable[str]] = ..., examples: _Optional[_Iterable[_Union[ClassExample, _Mapping]]] = ..., pool: _Optional[_Union[PromptPool, str]] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("x", "y")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ...) -> None: ...

class ClassExample(_message.Message):
    __slots__ = ("image", "point", "box", "mask")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    POINT_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    image: int
    point: Point
    box: Box
    mask: RunLengths
    def __init__(self, image: _Optional[int] = ..., point: _Optional[_Union[Point, _Mapping]] = ..., box: _Optional[_Union[Box, _Mapping]] = ..., mask: _Optional[_Union[RunLengths, _Mapping]] = ...) -> None: ...

class SegmentImagesRequest(_message.Message):
    __slots__ = ("model", "images", "classes", "templates", "features", "resolution", "fit", "background_threshold", "background_classes", "include_scores", "mode", "partial", "include_instances", "min_area_share", "size", "background", "quality", "background_level", "include_all_scores", "holes")
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
    INCLUDE_INSTANCES_FIELD_NUMBER: _ClassVar[int]
    MIN_AREA_SHARE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_LEVEL_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_ALL_SCORES_FIELD_NUMBER: _ClassVar[int]
    HOLES_FIELD_NUMBER: _ClassVar[int]
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
    include_instances: bool
    min_area_share: float
    size: MaskSize
    background: SegmentBackground
    quality: SegmentQuality
    background_level: float
    include_all_scores: bool
    holes: Holes
    def __init__(self, model: _Optional[str] = ..., images: _Optional[_Iterable[_Union[_image_pb2.Image, _Mapping]]] = ..., classes: _Optional[_Iterable[_Union[SegmentClass, _Mapping]]] = ..., templates: _Optional[_Union[_text_pb2.Templates, _Mapping]] = ..., features: _Optional[_Union[DenseFeatures, str]] = ..., resolution: _Optional[int] = ..., fit: _Optional[_Union[_image_pb2.Fit, str]] = ..., background_threshold: _Optional[float] = ..., background_classes: _Optional[_Iterable[_Union[SegmentClass, _Mapping]]] = ..., include_scores: bool = ..., mode: _Optional[_Union[SegmentMode, str]] = ..., partial: bool = ..., include_instances: bool = ..., min_area_share: _Optional[float] = ..., size: _Optional[_Union[MaskSize, str]] = ..., background: _Optional[_Union[SegmentBackground, str]] = ..., quality: _Optional[_Union[SegmentQuality, str]] = ..., background_level: _Optional[float] = ..., include_all_scores: bool = ..., holes: _Optional[_Union[Holes, str]] = ...) -> None: ...

class ClassArea(_message.Message):
    __slots__ = ("label", "name", "color", "area_share", "score", "confidence")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    COLOR_FIELD_NUMBER: _ClassVar[int]
    AREA_SHARE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    label: int
    name: str
    color: str
    area_share: float
    score: float
    confidence: float
    def __init__(self, label: _Optional[int] = ..., name: _Optional[str] = ..., color: _Optional[str] = ..., area_share: _Optional[float] = ..., score: _Optional[float] = ..., confidence: _Optional[float] = ...) -> None: ...

class RunLengths(_message.Message):
    __slots__ = ("height", "width", "counts")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    counts: str
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., counts: _Optional[str] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("left", "top", "width", "height")
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    left: float
    top: float
    width: float
    height: float
    def __init__(self, left: _Optional[float] = ..., top: _Optional[float] = ..., width: _Optional[float] = ..., height: _Optional[float] = ...) -> None: ...

class Instance(_message.Message):
    __slots__ = ("label", "area", "box", "score", "mask")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    AREA_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    label: int
    area: int
    box: Box
    score: float
    mask: RunLengths
    def __init__(self, label: _Optional[int] = ..., area: _Optional[int] = ..., box: _Optional[_Union[Box, _Mapping]] = ..., score: _Optional[float] = ..., mask: _Optional[_Union[RunLengths, _Mapping]] = ...) -> None: ...

class Segmentation(_message.Message):
    __slots__ = ("labels", "scores", "classes", "background_share", "instances", "cosines")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_SHARE_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    COSINES_FIELD_NUMBER: _ClassVar[int]
    labels: _tensor_pb2.Tensor
    scores: _tensor_pb2.Tensor
    classes: _containers.RepeatedCompositeFieldContainer[ClassArea]
    background_share: float
    instances: _containers.RepeatedCompositeFieldContainer[Instance]
    cosines: _tensor_pb2.Tensor
    def __init__(self, labels: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., scores: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., classes: _Optional[_Iterable[_Union[ClassArea, _Mapping]]] = ..., background_share: _Optional[float] = ..., instances: _Optional[_Iterable[_Union[Instance, _Mapping]]] = ..., cosines: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class SegmentImagesResponse(_message.Message):
    __slots__ = ("model", "segmentations", "errors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SEGMENTATIONS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    segmentations: _containers.RepeatedCompositeFieldContainer[Segmentation]
    errors: _containers.RepeatedCompositeFieldContainer[_item_error_pb2.ItemError]
    def __init__(self, model: _Optional[str] = ..., segmentations: _Optional[_Iterable[_Union[Segmentation, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[_item_error_pb2.ItemError, _Mapping]]] = ...) -> None: ...
