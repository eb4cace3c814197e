"""Load weights into a model, and check that every tensor was used.

transformers maps the names of the tensors, of which there are several generations: those of the
official files are among them. It only warns of tensors that are missing, left over or of another
shape; here they are errors.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from model.checkpoints.checkpoint import CheckpointError, name_some

Model = TypeVar("Model", bound=PreTrainedModel)
PROBLEMS: Final = {
    "missing_keys": "lacks",
    "unexpected_keys": "has unknown tensors:",
    "mismatched_keys": "has tensors of other shapes than its sizes say:",
    "error_msgs": "cannot be loaded:",
}


def load_weights(
    kind: type[Model], source: Path | Mapping[str, Tensor], config: PretrainedConfig, *, path: Path
) -> Model:
    """Load a model from a folder of safetensors, memory-mapped if float32, or from tensors.

    Args:
        kind: Class of the model.
        source: A folder, or tensors by name.
        config: Sizes of the model.
        path: What error messages name.

    Returns:
        The model in float32 and evaluation mode.

    Raises:
        CheckpointError: Weights are unreadable, missing, left over, of a wrong shape or not finite.
    """
    folder = source if isinstance(source, Path) else None
    # transformers' types lack the tuple that `output_loading_info` returns.
    from_pretrained: Any = kind.from_pretrained
    try:
        with _quiet():
            model, found = from_pretrained(
                folder,
                state_dict=None if isinstance(source, Path) else dict(source),
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # a damaged file can raise anything
        raise _error(path, f"cannot be loaded as {kind.__name__} ({error})") from error
    problems = [
        f"{text} {name_some(key if isinstance(key, str) else str(key[0]) for key in found[field])}"
        for field, text in PROBLEMS.items()
        if found.get(field)
    ]
    if problems:
        raise _error(path, f"{' and '.join(problems)}; it is not a complete {kind.__name__}")
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise _error(path, f"has NaN or infinite values in {name!r}")
    loaded: Model = model
    return loaded


def _error(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {what}: use the files as they were released, or save the model again"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide progress bars and warnings of transformers; our errors report the same problems."""
    had_bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()
