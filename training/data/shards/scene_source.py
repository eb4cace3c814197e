"""Composed scenes as items for shards: image, captions and names; their masks stay behind."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from training.data.scenes import SceneConfig, SceneSource, compose_scene
from training.data.shards.sample import BadSample, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneItems:
    """The first so many scenes of a source.

    Attributes:
        source: What scenes are made from.
        config: What they look like.
        count: How many.
    """

    source: SceneSource
    config: SceneConfig
    count: int

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> str:
        """Changes with the drawings, photos, words and settings, not with the number of scenes."""
        digest, source = hashlib.sha256(self.source.bank.rgba_MSS4.tobytes()), self.source
        for photo in source.photos:
            digest.update(photo.pixels_HW3.tobytes())
        settings = (source.styles, sorted(source.names), source.split, source.seed)
        digest.update(repr((settings, sorted(source.keywords.items()))).encode())
        digest.update(repr(self.config).encode())
        return digest.hexdigest()

    def items(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BadSample]]:
        """Compose scenes `start` and on, and encode them without loss."""
        for index in range(start, stop):
            scene = compose_scene(self.source, index, self.config)
            buffer = io.BytesIO()
            Image.fromarray(scene.pixels_SS3).save(buffer, "PNG")
            yield (
                f"scene {index}",
                Sample(
                    key=f"{index:09d}",
                    image=buffer.getvalue(),
                    suffix=".png",
                    captions=scene.captions.by_source(),
                    names=scene.captions.names,
                ),
            )
