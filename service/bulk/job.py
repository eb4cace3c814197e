"""What a job computes, and what it may not change between one start and the next."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from service.bulk.parts import Inputs
from service.bulk.reading import Columns
from service.bulk.rows import Dtype
from service.engines.engine import ModelSummary, UserError
from service.messages import EmbedImagesRequest

RECORD_VERSION: Final = 1


class JobError(UserError):
    """The job cannot go on as it was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What is computed of every image, and how it is written.

    Attributes:
        request: Without images.
        dtype: Of the numbers.
        columns: Of Parquet files that are read.
        part_items: Images of one part.
    """

    request: EmbedImagesRequest
    dtype: Dtype
    columns: Columns
    part_items: int

    def told(self) -> dict[str, Any]:
        """As plain values."""
        request = asdict(self.request)
        del request["images"], request["model"]
        return {
            **request,
            "outputs": list(self.request.outputs),
            "dtype": self.dtype,
            "image_column": self.columns.image,
            "key_column": self.columns.key,
            "part_items": self.part_items,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Inputs, options and the model; all that its rows depend on."""

    inputs: Inputs
    options: JobOptions
    model: ModelSummary

    def record(self) -> dict[str, Any]:
        """What stands beside the output, to be compared at the next start."""
        return {
            "version": RECORD_VERSION,
            "options": self.options.told(),
            "model": {
                "name": self.model.name,
                "fingerprint": self.model.fingerprint,
                "embed_dim": self.model.embed_dim,
            },
            "inputs": {"digest": self.inputs.digest, "num_parts": len(self.inputs.parts)},
        }


def check_outputs(options: JobOptions, model: ModelSummary) -> None:
    """Refuse, before anything is read, what the model does not have.

    Raises:
        JobError: It names what there is.
    """
    missing = [name for name in options.request.outputs if name not in model.outputs]
    if missing:
        raise JobError(
            f"{model.name} has no output {missing[0]!r}; it has {', '.join(model.outputs)}."
        )


def compare_records(found: object, wanted: dict[str, Any], place: str) -> None:
    """Refuse to mix rows of two jobs.

    Raises:
        JobError: It names the first difference.
    """
    if found == wanted:
        return
    before = found if isinstance(found, dict) else {}
    for section, words in (
        ("options", "with other options"),
        ("model", "by another model"),
        ("inputs", "from other inputs"),
    ):
        old, new = before.get(section), wanted[section]
        if old != new:
            raise JobError(
                f"{place} was begun {words} ({_difference(old, new)}); repeat those, name another "
                "output, or begin anew by --overwrite."
            )
    raise JobError(f"{place} was begun by another version; begin anew by --overwrite.")


def _difference(old: object, new: dict[str, Any]) -> str:
    before = old if isinstance(old, dict) else {}
    name = next(name for name in new if before.get(name) != new[name])
    return f"{name}: {json.dumps(before.get(name))} then, {json.dumps(new[name])} now"
