"""Errors of conversion; each message says what to change."""

from importlib.util import find_spec
from typing import Final

from model.installation import install

# Import names of the libraries for conversion.
CONVERTING: Final = ("torch", "torchvision", "transformers", "onnx", "onnx_ir", "onnxscript")
COMPARING: Final = ("torch", "transformers")
DOWNLOADING: Final = ("huggingface_hub",)


class ConversionError(ValueError):
    """A source cannot be converted; the message says why and what to do."""


class SourceError(ConversionError):
    """The name of a source does not lead to a model."""


class HubError(ConversionError):
    """The hub refused the request."""


class HubUnreachableError(HubError):
    """The hub did not answer, or HF_HUB_OFFLINE is set."""


class CacheError(ConversionError):
    """The folder for converted packages cannot be used."""


class MissingExtraError(ConversionError):
    """A library of an extra is not installed."""


def require(libraries: tuple[str, ...], *, purpose: str) -> None:
    """MissingExtraError unless these libraries are installed, which are not imported."""
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{purpose} needs {', '.join(missing)}: {install('convert')}, or convert on "
            "a machine that has it (`python -m model convert`) and serve the folder that it writes"
        )
