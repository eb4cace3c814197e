"""A request body for each route of ours, for the OpenAPI page; a test sends every one of them."""

from collections.abc import Mapping
from typing import Any, Final

# A whole PNG file, as JSON has it.
ONE_PIXEL: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mM4"
    "AQAAygDJNEIn8wAAAABJRU5ErkJggg=="
)
CLASSES: Final = ["dog", {"name": "grass", "prompts": ["grass", "a lawn"]}, "sky"]

Body = Mapping[str, Any]
EXAMPLES: Final[Mapping[str, Mapping[str, Body]]] = {
    "/v1/images:embed": {
        "One global embedding": {"image": ONE_PIXEL},
        "Everything, in few bytes": {
            "images": [ONE_PIXEL],
            "outputs": ["cls1", "cls2", "patches", "values"],
            "dtype": "int8",
            "encoding": "base64",
        },
        "A list with a broken image": {
            "images": [ONE_PIXEL, "bm8gcGljdHVyZQ=="],
            "partial": True,
        },
    },
    "/v1/images:segment": {
        "Three classes": {"image": ONE_PIXEL, "classes": CLASSES},
        "Through windows, as COCO has masks": {
            "image": ONE_PIXEL,
            "classes": CLASSES,
            "mode": "slide",
            "background_classes": ["wall"],
            "format": "rle",
        },
    },
    "/v1/images:classify": {
        "The two best of three classes": {"image": ONE_PIXEL, "classes": CLASSES, "top_k": 2}
    },
    "/v1/images:features": {
        "Colours": {"image": ONE_PIXEL},
        "Groups in two images, numbered alike": {
            "images": [ONE_PIXEL, ONE_PIXEL],
            "kind": "groups",
            "group_count": 3,
            "scope": "request",
            "size": "model",
        },
    },
    "/v1/images:depth": {"Metres": {"image": ONE_PIXEL, "size": "image"}},
    "/v1/images:normals": {"Unit vectors": {"image": ONE_PIXEL, "size": "image"}},
    "/v1/texts:embed": {
        "Two texts": {"texts": ["a dog on grass", "the sea at night"]},
        "A class name, averaged over templates": {"texts": ["dog"], "templates": "tcl"},
    },
}


def examples_of(path: str) -> dict[str, Any]:
    """As OpenAPI has them; the names are told to readers."""
    return {
        name.lower().replace(",", "").replace(" ", "-"): {"summary": name, "value": body}
        for name, body in EXAMPLES[path].items()
    }
