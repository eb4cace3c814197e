"""Several processes of one evaluation: the share of each, and which one writes the report.

They share the folder of the report only. What one computes for all others is the report, and it
computes itself what it does not find there, so that a mistake about who is ready costs time only.
"""

import hashlib
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

from tipserve_cli.engines.engine import UserError

FOLDER: Final = "shards"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """A process: its number from 0, and how many there are."""

    number: int
    count: int

    @classmethod
    def of(cls, given: str | None, environment: Mapping[str, str]) -> Self:
        """The shard of an option such as `0/8`, else of torchrun's variables, else the only one.

        Raises:
            UserError: It is no shard.
        """
        text = given
        if text is None and "RANK" in environment:
            text = f"{environment['RANK']}/{environment.get('WORLD_SIZE', '1')}"
        text = "0/1" if text is None else text
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
            raise UserError(
                f"--shard is a number from 0 and how many there are, such as 0/8, not {text}."
            )
        return cls(int(number), int(count))

    def __str__(self) -> str:
        return f"{self.number}-of-{self.count}"

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every count-th item."""
        return items[self.number :: self.count]

    def finish(self, folder: Path, key: str) -> bool:
        """Note that this process has answered its share; returns whether all have.

        Args:
            folder: Of the report.
            key: What is evaluated.
        """
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        marks = [
            folder / FOLDER / f"{type(self)(number, self.count)}.{digest}"
            for number in range(self.count)
        ]
        marks[self.number].touch()
        return all(mark.exists() for mark in marks)


def choose_gpu(environment: MutableMapping[str, str]) -> None:
    """Let this process see only its own GPU, where torchrun has started several on a machine."""
    rank = environment.get("LOCAL_RANK", "")
    if not rank.isdecimal() or environment.get("LOCAL_WORLD_SIZE", "1") == "1":
        return
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    own = visible.split(",")[int(rank) :][:1] if visible else [rank]
    environment["CUDA_VISIBLE_DEVICES"] = "".join(own)
