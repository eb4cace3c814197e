"""Label Studio's labeling config, as controls; and what its smart tools draw, as examples."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from xml.etree import ElementTree

from connectors.app import Refused
from tipserve_client import Example

TAGS: Final = ("PolygonLabels", "RectangleLabels", "BrushLabels", "Choices")


class Control(NamedTuple):
    """A tag with labels: its name, the image's tag and field, and prompts by label."""

    tag: str
    name: str
    image: str
    field: str
    is_smart: bool
    prompts: dict[str, list[str]]


def read_config(text: str) -> list[Control]:
    """The tags to fill in; a smart one only if no other tag takes regions."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise Refused(f"The labeling config is no XML: {error}.") from error
    fields = {tag.get("name"): tag.get("value", "").lstrip("$") for tag in root.iter("Image")}
    found = []
    for tag in (one for name in TAGS for one in root.iter(name)):
        image, is_choice = tag.get("toName", ""), tag.tag == "Choices"
        prompts = {
            label: [word.strip() for word in one.get("prompts", "").split(",") if word.strip()]
            for one in tag.iter("Choice" if is_choice else "Label")
            if (label := one.get("value"))
        }
        if prompts and fields.get(image) and tag.get("perRegion") != "true":
            is_smart = tag.get("smart") == "true" and not is_choice
            place = (tag.get("name", ""), image, fields[image])
            found.append(Control(tag.tag, *place, is_smart, prompts))
    if not found:
        raise Refused(f"The config has no {', '.join(TAGS)} with labels for an Image.")
    has_other = any(not one.is_smart and one.tag != "Choices" for one in found)
    return [one for one in found if not (one.is_smart and has_other)]


def read_examples(shapes: Sequence[Mapping[str, Any]]) -> dict[str, list[Example]]:
    """Examples by label, from the boxes and points of a smart tool, which are in percent."""
    found: dict[str, list[Example]] = {}
    for shape in shapes:
        value, width, height = shape["value"], shape["original_width"], shape["original_height"]
        x, y = value["x"] / 100 * width, value["y"] / 100 * height
        example = Example(point=(min(x, width - 1), min(y, height - 1)))
        if shape["type"].startswith("rectangle"):
            right, bottom = x + value["width"] / 100 * width, y + value["height"] / 100 * height
            example = Example(box=(x, y, min(right, width) - x, min(bottom, height) - y))
        for label in value.get(shape["type"], ()):
            found.setdefault(label, []).append(example)
    return found
