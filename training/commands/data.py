"""`python -m training data`: fetch the art and render the sprite bank."""

from pathlib import Path

from pydantic.dataclasses import dataclass

from training.data.folder import DataFolder, fetch
from training.options import option


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the job."""

    folder: Path = option("the data folder", Path("data"))
    with_stamps: bool = option("also fetch the GPL photo stamps (evaluation)", False)


def run(options: Options) -> None:
    """Fetch and render, and print the number of drawings."""
    fetch(options.folder, with_stamps=options.with_stamps)
    sprites = len(DataFolder(path=options.folder).bank().rgba_MSS4)
    print(f"{sprites} drawings are ready in {options.folder}")
