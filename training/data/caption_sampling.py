"""Chooses each step's captions: one source for CLS1, another drawn for CLS2."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionSampling:
    """Which caption sources supervise which CLS token.

    Attributes:
        cls1: Sources for CLS1; TIPSv2 takes the web alt text, always.
        cls2: Sources for CLS2, one drawn at even odds each time an image is seen; TIPSv2 draws
            between a short synthetic caption (PaliGemma) and a long one (Gemini). The odds are
            not published; one reader's note says even.

    Both the same single source is the ablation without multi-granularity captions.

    Source: TIPSv2, arXiv:2604.12012, the section on multi-granularity captions.
    """

    cls1: tuple[str, ...] = ("alt",)
    cls2: tuple[str, ...] = ("paligemma", "gemini")

    def __post_init__(self) -> None:
        """Check that each token has a source."""
        if not self.cls1 or not self.cls2:
            raise ValueError("captions.cls1 and captions.cls2 each need at least one source")

    def choose(
        self, captions: Mapping[str, str], rng: np.random.Generator
    ) -> tuple[str, str] | None:
        """Draw an image's captions for CLS1 and CLS2.

        A token none of whose sources this image has takes any caption that it has; an image
        without a caption gives None.
        """
        present = {source: text for source, text in captions.items() if text.strip()}
        if not present:
            return None
        first, second = (
            [present[source] for source in wanted if source in present] or list(present.values())
            for wanted in (self.cls1, self.cls2)
        )
        return first[rng.integers(len(first))], second[rng.integers(len(second))]


SCENE_CAPTIONS = CaptionSampling(cls1=("alt",), cls2=("keywords", "scene"))
