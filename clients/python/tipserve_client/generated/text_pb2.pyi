from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TemplateSet(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TEMPLATE_SET_UNSPECIFIED: _ClassVar[TemplateSet]
    TEMPLATE_SET_NONE: _ClassVar[TemplateSet]
    TEMPLATE_SET_TCL: _ClassVar[TemplateSet]
TEMPLATE_SET_UNSPECIFIED: TemplateSet
TEMPLATE_SET_NONE: TemplateSet
TEMPLATE_SET_TCL: TemplateSet

class CustomTemplates(_message.Message):
    __slots__ = ("templates",)
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    templates: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, templates: _Optional[_Iterable[str]] = ...) -> None: ...

class Templates(_message.Message):
    __slots__ = ("set", "custom")
    SET_FIELD_NUMBER: _ClassVar[int]
    CUSTOM_FIELD_NUMBER: _ClassVar[int]
    set: TemplateSet
    custom: CustomTemplates
    def __init__(self, set: _Optional[_Union[TemplateSet, str]] = ..., custom: _Optional[_Union[CustomTemplates, _Mapping]] = ...) -> None: ...
