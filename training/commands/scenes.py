"""`python -m training scenes`: write composed test scenes with exact masks, for any evaluation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from training.data.folder import DataFolder, common_names
from training.data.scenes import SceneSource, compose_scene
from training.evaluate.sets import MULTI_OBJECT
from training.evaluate.zero_shot_segmentation import class_ids
from training.options import option


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the job."""

    data: Path = option("the data folder", Path("data"))
    output: Path = option("parent of a folder for each set")
    count: PositiveInt = option("scenes of each set", 100)
    size: PositiveInt = option("side in pixels", 320)


def run(options: Options) -> None:
    """Write a folder for each set, as `tipserve evaluate --segmentation` reads it."""
    data = DataFolder(path=options.data)
    # No training scene has these drawings.
    sources = {
        "fluent": data.source("test", styles=("fluent-3d",), names=common_names()),
        "stamps": data.stamp_source(),
    }
    for name, source in sources.items():
        if source is not None:
            write_scenes(options.output / name, source, options.count, options.size)
            print(f"{options.output / name}: {options.count} scenes")


def write_scenes(folder: Path, source: SceneSource, count: int, size: int) -> None:
    """Write scenes of two or three objects: `images/`, `masks/` (0 is background) and `names.txt`.

    Label k of a mask is the k-th name from 1.
    """
    names = sorted(source.names)
    # Mask values of a scene are those of all concepts; every name has the next label.
    label_of = np.zeros(class_ids(names).max() + 1, np.uint8)
    label_of[class_ids(names)] = np.arange(1, len(names) + 1)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    config = replace(MULTI_OBJECT, size=size)
    for index in range(count):
        scene = compose_scene(source, index, config)
        Image.fromarray(scene.pixels_SS3).save(folder / "images" / f"{index:04}.png")
        Image.fromarray(label_of[scene.mask_SS]).save(folder / "masks" / f"{index:04}.png")
