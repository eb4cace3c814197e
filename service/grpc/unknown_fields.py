"""Fields of a message that are newer than this server."""

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from service.errors import InvalidRequest


def refuse_unknown_fields(message: Message, path: str = "", *, is_deep: bool = True) -> None:
    """Refuse a field that is newer than this server: what it asks for would be ignored.

    Args:
        message: With the messages inside it, where `is_deep`.
        path: Where it is in the request.
        is_deep: False leaves those inside it to whoever reads them.

    Raises:
        InvalidRequest: The message, or one inside it, has such a field.
    """
    for unknown in UnknownFieldSet(message):  # type: ignore[attr-defined]  # its stub lacks __iter__
        where = f"{path}: field" if path else "Field"
        raise InvalidRequest(
            f"{where} number {unknown.field_number} is not known.",
            code="unknown_field",
            param=path or None,
        )
    for field, value in message.ListFields() if is_deep else ():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        name = f"{path}.{field.name}" if path else field.name
        if isinstance(value, Message):
            refuse_unknown_fields(value, name)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, item in value.items():
                if isinstance(item, Message):
                    refuse_unknown_fields(item, f"{name}.{key}")
        else:
            for index, item in enumerate(value):
                refuse_unknown_fields(item, f"{name}[{index}]")
