"""What goes wrong between a name and a package, as sentences that say what to change."""

from importlib.util import find_spec
from typing import Final

# What converting needs beside a runtime; import names.
CONVERTING: Final = ("torch", "torchvision", "transformers", "onnx", "onnx_ir", "onnxscript")
COMPARING: Final = ("torch", "transformers")
DOWNLOADING: Final = ("huggingface_hub",)


class ConversionError(ValueError):
    """A source cannot become a package; the message says why and what to do."""


class SourceError(ConversionError):
    """A name that leads to no model."""


class HubError(ConversionError):
    """The hub did not give what was asked for."""


class HubUnreachableError(HubError):
    """The hub did not answer, or was not to be asked."""


class CacheError(ConversionError):
    """The folder for converted packages cannot be used."""


class MissingExtraError(ConversionError):
    """A library is not installed that serving alone does not need."""


def require(libraries: tuple[str, ...], *, purpose: str) -> None:
    """See that libraries are installed, without importing them.

    Raises:
        MissingExtraError: One is not; the message names the extra.
    """
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{purpose} needs {', '.join(missing)}, which serving alone does not: "
            "pip install 'tipserve[convert]', or convert where that is installed "
            "(`python -m model convert`) and serve the folder that it writes"
        )
