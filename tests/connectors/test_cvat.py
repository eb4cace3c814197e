"""CVAT's function file, with stand-ins for the parts of cvat-sdk that it uses."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from connectors import cvat
from tests.connectors.conftest import Dogs
from tipserve_cli import model_options
from tipserve_cli.engine import Engine
from tipserve_client import Client, Retry, Unavailable

CONTEXT = SimpleNamespace(frame_name="1.png", conf_threshold=None, conv_mask_to_poly=False)
FRAME = Image.new("RGBA", (60, 40))


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: dict[str, Any] = {
        "label_spec": lambda name, index, **options: (name, index, options["type"]),
        "DetectionFunctionSpec": lambda labels: labels,
        "rectangle": lambda label, points: ("rectangle", label, points),
        "polygon": lambda label, points: ("polygon", label, points),
        "mask": lambda label, points: ("mask", label, points),
    }
    package, functions, masks = (
        ModuleType(f"cvat_sdk{name}") for name in ("", ".auto_annotation", ".masks")
    )
    functions.__dict__.update(parts)
    masks.__dict__["encode_mask"] = lambda mask: float(mask.sum())
    package.__dict__.update(masks=masks, auto_annotation=functions)
    for module in (package, functions, masks):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def served(dogs: Dogs, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters of a function whose server is the fake."""
    engine = Engine(Client(dogs, retry=Retry(max_attempts=1)), 1)
    monkeypatch.setattr(model_options, "connect", lambda *_: engine)
    monkeypatch.setattr("atexit.register", lambda _: None)
    return {"url": "grpc://server"}


@pytest.mark.usefixtures("sdk")
def test_words_become_labels_and_regions_shapes(served: dict[str, Any], dogs: Dogs) -> None:
    found = {}
    for shape in cvat.SHAPES:
        function = cvat.create("Lawn=grass|a lawn, dog", shape=shape, **served)
        assert function.spec == [("Lawn", 0, shape), ("dog", 1, shape)]
        ((kind, label, found[shape]),) = function.detect(CONTEXT, FRAME)
        assert (kind, label) == (shape, 1)
    assert found["mask"] == 6.0
    assert found["rectangle"] == [1, 2, 4, 4]
    assert sorted(zip(found["polygon"][::2], found["polygon"][1::2], strict=True)) == [
        (1, 2), (1, 4), (4, 2), (4, 4)
    ]  # fmt: skip
    lawn = dogs.requests[0].fields["classes"][0]
    assert lawn == {"name": "Lawn", "prompts": ["grass", "a lawn"]}


@pytest.mark.usefixtures("sdk")
def test_what_cvat_asks_of_a_frame(served: dict[str, Any]) -> None:
    function = cvat.create("dog", shape="mask", **served)
    asked = SimpleNamespace(conf_threshold=None, conv_mask_to_poly=True)
    assert function.detect(asked, FRAME)[0][0] == "polygon"
    assert not function.detect(SimpleNamespace(conf_threshold=0.8, conv_mask_to_poly=False), FRAME)


@pytest.mark.usefixtures("sdk")
def test_errors_end_a_frame_and_the_next_one_works(served: dict[str, Any], dogs: Dogs) -> None:
    function = cvat.create("dog", **served)
    dogs.is_away = True
    with pytest.raises(Unavailable):
        function.detect(CONTEXT, FRAME)
    dogs.is_away, dogs.most_images = False, 1
    assert function.detect(CONTEXT, FRAME)
    with pytest.raises(Exception, match="gone"):
        function.detect(CONTEXT, FRAME)


@pytest.mark.parametrize("options", [{"words": " ,"}, {"words": "dog", "shape": "circle"}])
def test_a_wrong_parameter_is_an_error(options: Any) -> None:
    with pytest.raises(ValueError, match=r"words|shape"):
        cvat.create(**options)


def test_without_cvat_the_error_says_what_to_install(
    served: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cvat_sdk", None)
    with pytest.raises(ImportError, match="pip install cvat-cli"):
        cvat.create("dog", **served)


def test_cvat_loads_the_file_by_its_path() -> None:
    spec = importlib.util.spec_from_file_location("__cvat_function__", Path(cvat.__file__))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    assert callable(module.create)
