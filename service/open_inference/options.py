"""The parameters of an inference request: what they may be, and what they say to the core."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, get_args

from model.preprocess import Fit
from service.call import PRIORITIES, Call
from service.errors import InvalidRequest
from service.messages import (
    TEXT_TEMPLATES,
    EmbedImagesRequest,
    EmbedTextsRequest,
    TemplateSet,
)
from service.open_inference.tensors import IMAGE, PIXELS, TEXT

Parameters = Mapping[str, Any]
OutputDatatype = Literal["FP32", "FP16"]

MAX_PRIORITY: Final = max(PRIORITIES)
# Which inputs a parameter is about, where it is not about all.
NEEDED_INPUTS: Final = {
    "resolution": (IMAGE.name, PIXELS.name),
    "fit": (IMAGE.name, PIXELS.name),
    "templates": (TEXT.name,),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a request asks for beside its inputs and outputs.

    Attributes:
        timeout: Microseconds after which the answer is of no use; 0 is what the server sets.
        priority: One of the service's; 1 goes first and 0 is the default.
        resolution: As of `EmbedImagesRequest`.
        fit: As of `EmbedImagesRequest`.
        normalize: Whether every embedding has unit length.
        templates: Prompts into which each text is put.
        output_datatype: Of every output.
    """

    timeout: int = 0
    priority: int = 0
    resolution: int | None = EmbedImagesRequest.resolution
    fit: Fit = EmbedImagesRequest.fit
    normalize: bool = EmbedTextsRequest.normalize
    templates: TemplateSet = TEXT_TEMPLATES
    output_datatype: OutputDatatype = "FP32"

    @classmethod
    def read(cls, parameters: Parameters, inputs: frozenset[str]) -> Self:
        """Check parameters as they came.

        Args:
            parameters: Names and values.
            inputs: Names of the inputs that are there; a parameter about others is an error.

        Raises:
            InvalidRequest: One is not known, has a wrong value, or no input that it is about.
        """
        for name, value in parameters.items():
            check = CHECKS.get(name)
            if check is None:
                raise InvalidRequest(
                    f"The parameter {name[:100]!r} is not known; there are {', '.join(CHECKS)}.",
                    code="unknown_field",
                    param=f"parameters.{name[:100]}",
                )
            if not check(value):
                raise InvalidRequest(
                    f"The parameter {name} is {MEANINGS[name]}.", param=f"parameters.{name}"
                )
            needed = NEEDED_INPUTS.get(name)
            if needed and inputs.isdisjoint(needed):
                raise InvalidRequest(
                    f"The parameter {name} is about the input {' or '.join(needed)}, and there is "
                    "none; leave it out.",
                    param=f"parameters.{name}",
                )
        return cls(**parameters)

    def apply(self, call: Call) -> None:
        """Let the call have the deadline and the priority that were asked for."""
        if self.timeout:
            call.deadline = min(call.deadline, call.started + self.timeout / 1e6)
        if self.priority:
            call.priority = self.priority


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_one_of(*choices: Any) -> Any:
    return lambda value: isinstance(value, str) and value in choices


CHECKS: Final[Mapping[str, Any]] = {
    "timeout": lambda value: _is_whole(value) and 0 <= value < 2**63,
    "priority": lambda value: _is_whole(value) and 0 <= value <= MAX_PRIORITY,
    "resolution": lambda value: _is_whole(value) and 0 < value < 2**31,
    "fit": _is_one_of(*get_args(Fit)),
    "normalize": lambda value: isinstance(value, bool),
    "templates": _is_one_of(*get_args(TemplateSet)),
    "output_datatype": _is_one_of(*get_args(OutputDatatype)),
}
MEANINGS: Final[Mapping[str, str]] = {
    "timeout": "a whole number of microseconds, at least 0",
    "priority": f"a whole number from 0 to {MAX_PRIORITY}; 1 goes first, and 0 is the default",
    "resolution": "a whole number of pixels",
    "fit": "squash or aspect",
    "normalize": "true or false",
    "templates": "none or tcl",
    "output_datatype": "FP32 or FP16",
}
