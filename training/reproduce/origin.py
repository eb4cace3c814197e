"""From which weights a result came: only results that share them are compared.

A start that is trained again on another CPU differs by points of mIoU, so a seed's results carry
digests of weights: a result of its own, "weights", and of those it was built on, "built_on".
Results that were kept before have neither; a seed has all of one kind.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from training.methods.teacher import HEAD_FILE, MODEL_FOLDER

WEIGHTS, BUILT_ON = "weights", "built_on"


def weights_digest(folder: Path) -> str:
    """Identifies the model and the heads that an arm left in its folder."""
    model = load_file(folder / MODEL_FOLDER / "model.safetensors")
    heads = torch.load(folder / HEAD_FILE, map_location="cpu", weights_only=True)
    found = hashlib.blake2b(digest_size=8)
    for tensors in (model, heads):
        for name, value in sorted(tensors.items()):
            found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def known_weights(results: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    """The digest of each arm that results of one seed name; None if they name none.

    Raises:
        ValueError: The results come from different weights.
    """
    if results and not any(WEIGHTS in result for result in results):
        return None
    known: dict[str, str] = {}
    for result in results:
        named = {result["arm"]: result.get(WEIGHTS), **result.get(BUILT_ON, {})}
        for arm, digest in named.items():
            if digest is None or known.setdefault(arm, digest) != digest:
                raise ValueError(
                    f"the results of seed {result['seed']} come from different weights of "
                    f"'{arm}' and cannot be compared: delete those of one origin"
                )
    return known


class Seed:
    """What the kept results of a seed were made from; further arms must build on the same.

    Args:
        results: The seed's folder of results.

    Raises:
        ValueError: Its results do not say from which weights they came, or from different ones.
    """

    def __init__(self, results: Path) -> None:
        self._folder = results
        kept = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*.json")]
        known = known_weights(kept)
        if known is None:
            raise self._refused("do not say from which weights they came")
        self._known = known

    def check(self, arm: str, digest: str) -> None:
        """Compare the weights of an arm with those that the results name.

        Raises:
            ValueError: They are others.
        """
        if self._known.get(arm, digest) != digest:
            raise self._refused(
                f"come from other weights of '{arm}' than those here, as of another machine"
            )

    def _refused(self, reason: str) -> ValueError:
        return ValueError(
            f"the results in {self._folder} {reason}, so no arm joins them: delete this folder or "
            "choose another --results, so that all arms of the seed are trained here"
        )
