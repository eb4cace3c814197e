"""Names of classes that checkpoints are trained on but do not name."""

from pathlib import Path
from typing import Final

NAMES: Final = Path(__file__).parent / "names"


def ade20k_names() -> list[str]:
    """The 150 classes of ADE20k, in the order of its labels from 1, each by its first name."""
    lines = (NAMES / "ade20k.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]
