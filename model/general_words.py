"""General words, such as dog: a package may name their members, such as poodle, with embeddings.

A cell that is sure of one member lies far out in its direction, and the word, which is about the
mean of its members, is nearer to cells that are undecided: its map is low on what it names. So the
word and each of its members are vectors of one class, and the best of them counts.

Shape legend: M members of all words, V vectors of one word, D embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from model.files import atomic_write
from model.package import ModelPackage, PackageError
from model.segmentation import l2_normalize

WORDS_FILE: Final = "general_words.safetensors"
# With the word itself 512 vectors of 768 numbers: 1.2 ms of one core for the 100 cells of an image.
MAX_MEMBERS: Final = 511
# Length of a member's vector. With 1, words with members won against exact names of other things:
# of 50 everyday names the right one had 43 % of a drawing's pixels, with 0.8 it has 45 %.
MEMBER_LENGTH: Final = np.float32(0.8)


class _Table(BaseModel):
    """What the file states beside the vectors: the members, and which of them each word has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    members: list[str]
    words: dict[str, Annotated[list[NonNegativeInt], Field(min_length=1, max_length=MAX_MEMBERS)]]


@dataclass(frozen=True, slots=True, eq=False)
class GeneralWords:
    """The general words of a package, in lower case, with the names of their members.

    `vectors` are float32 [V, D] of each word: the direction of its members' mean, of unit length,
    and its members, of the length `MEMBER_LENGTH`. Each of these is the mean of a member and of all
    of them, which keeps a word with many members from winning wherever one of them fits by chance.
    """

    members_of: Mapping[str, Sequence[str]]
    vectors: Mapping[str, NDArray[np.float32]]

    def widen(self, name: str, own_D: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Vectors [V, D] of the word and its members; None if the name is no such word.

        Args:
            name: Of a class; in upper case or in the plural it counts as well.
            own_D: The name's embedding, of unit length.
        """
        word = name.strip().lower()
        found = self.vectors.get(word, self.vectors.get(word.removesuffix("s")))
        if found is None:
            return None
        vectors_VD = found.copy()
        vectors_VD[0] = l2_normalize(own_D + found[0])
        return vectors_VD


def write_words(
    path: Path, words: Mapping[str, Sequence[str]], embeddings: Mapping[str, NDArray[np.float32]]
) -> None:
    """Write members of words and embeddings [D] of each member to a file, whole or not at all."""
    members = sorted({member for group in words.values() for member in group})
    index = {member: place for place, member in enumerate(members)}
    table = _Table(
        members=members,
        words={word: [index[member] for member in group] for word, group in words.items()},
    )
    unit_MD = l2_normalize(np.stack([embeddings[member] for member in members]))
    atomic_write(
        path, save({"members": unit_MD.astype(np.float16)}, {"table": table.model_dump_json()})
    )


def read_words(package: ModelPackage) -> GeneralWords | None:
    """Read the general words of a package; None if it has none.

    Raises:
        PackageError: The file is malformed, or its embeddings are those of another model.
    """
    if WORDS_FILE not in package.manifest.files:
        return None
    try:
        with safe_open(package.file(WORDS_FILE), framework="numpy") as file:
            table = _Table.model_validate_json((file.metadata() or {})["table"])
            unit_MD = file.get_tensor("members")
    except (SafetensorError, KeyError, ValidationError) as error:
        raise PackageError(f"{WORDS_FILE} is no table of general words: {error}") from error
    expected = (len(table.members), package.manifest.embed_dim)
    if unit_MD.shape != expected or unit_MD.dtype != np.float16:
        raise PackageError(f"{WORDS_FILE} must hold float16 {expected}, not {unit_MD.shape}")
    if max(max(group) for group in table.words.values()) >= len(table.members):
        raise PackageError(f"{WORDS_FILE} names a member that it does not hold")
    return GeneralWords(
        members_of={w: [table.members[m] for m in group] for w, group in table.words.items()},
        vectors={word: _leaned(unit_MD[group]) for word, group in table.words.items()},
    )


def _leaned(members: NDArray[np.float16]) -> NDArray[np.float32]:
    members_VD = members.astype(np.float32)
    mean_D = l2_normalize(members_VD.mean(axis=0))
    leaned_VD = MEMBER_LENGTH * l2_normalize(members_VD + mean_D)
    return np.concatenate([l2_normalize(leaned_VD.mean(axis=0))[None], leaned_VD])
