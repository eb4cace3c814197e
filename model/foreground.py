"""The foreground of an image: a cue for people and animals.

A small network finds what stands in front: people, animals, cups and houses. The encoder knows
little of people: where patches there look more like clothes than like other things, it is taken
for people. Of animals the encoder knows where they are, and the network where they end.

Shape legend: h w patch grid, N patches, Y X the grid of the image's colours, K classes, V vectors,
D embedding width.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from model.general_words import GeneralWords
from model.segmentation import l2_normalize, upsample_bilinear

Floats = NDArray[np.float32]

# Of MediaPipe's selfie segmentation; see `training/photographs/people.py` at commit 87d92eb6.
SIDE: Final = 256
# A single run allocates about so much.
RUN_BYTES: Final = 24 * 2**20
# Classes that mean people, and words of other things that stand in front.
PEOPLE_WORDS: Final = frozenset(
    (
        "person",
        "people",
        "human",
        "man",
        "men",
        "woman",
        "women",
        "child",
        "children",
        "boy",
        "girl",
    )
)
OTHER_WORDS: Final = (
    "animal", "building", "food", "fruit", "furniture", "plant", "tool", "vehicle",
)  # fmt: skip
# Cosine of a class that means people where there are none, and what is added where there are.
BASE: Final = np.float32(0.1)
GAIN: Final = np.float32(0.4)
# Difference of cosines, clothes less other things, at which the share of people is 0.73.
MARGIN: Final = np.float32(0.024)
# Patches on each side of a patch that are asked with it.
REACH: Final = 2
# Share of its range by which the map of an animal differs between what stands in front and the
# rest.
ANIMAL_SHARE: Final = np.float32(0.3)


@dataclass(frozen=True, slots=True, eq=False)
class ForegroundFinder:
    """Finds the foreground of images.

    Attributes:
        find_foreground: The network: float32 [1, 3, 256, 256] in [0, 1] to [1, 1, 256, 256].
        other_VD: Vectors of other things, as in `GeneralWords`.
        animals: Last words of the names of animals: "squirrel" of "fox squirrel".
    """

    find_foreground: Callable[[Floats], Floats]
    other_VD: Floats
    animals: Collection[str] = frozenset()

    @classmethod
    def of(
        cls, find_foreground: Callable[[Floats], Floats], words: GeneralWords
    ) -> "ForegroundFinder":
        """The finder of a package that has the general words."""
        others_VD = np.concatenate([words.vectors[word][1:] for word in OTHER_WORDS])
        known = set(words.members_of["animal"])
        known |= {word for word, members in words.members_of.items() if known.issuperset(members)}
        return cls(find_foreground, others_VD, frozenset(name.split()[-1] for name in known))

    def is_animal(self, name: str) -> bool:
        """Whether a class is an animal by the last word of its name, also in the plural."""
        last = name.lower().split()[-1:]
        return any(word in self.animals or word.removesuffix("s") in self.animals for word in last)

    def find(self, guide_3YX: NDArray[np.uint8], features_ND: Floats) -> "Foreground":
        """The foreground of an image, whatever is asked about it. Takes 6 ms of CPU.

        Args:
            guide_3YX: The colours of the image, see `model.outlines.make_guide`.
            features_ND: Its patch embeddings, row by row.
        """
        colours = Image.fromarray(np.moveaxis(guide_3YX, 0, -1).copy(), "YCbCr").convert("RGB")
        pixels = np.asarray(colours.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)
        planes_13HW = np.ascontiguousarray(np.moveaxis(pixels, -1, 0)[None]) / np.float32(255)
        front = Image.fromarray(self.find_foreground(planes_13HW)[0, 0])
        front_YX = np.asarray(front.resize(colours.size, Image.Resampling.BOX))
        other_N = (l2_normalize(features_ND) @ self.other_VD.T).max(axis=1)
        return Foreground(np.rint(255 * front_YX).astype(np.uint8), other_N)


@dataclass(frozen=True, slots=True, eq=False)
class Foreground:
    """What an image has in front.

    Attributes:
        front_YX: Where something stands in front, from 0 to 255.
        other_N: Cosine of each patch with the nearest word of other things.
    """

    front_YX: NDArray[np.uint8]
    other_N: Floats

    def raise_maps(
        self,
        maps_KYX: Floats,
        cosine_Khw: Floats,
        *,
        people: Sequence[int] = (),
        animals: Sequence[int] = (),
        least_cosine: float = -1,
    ) -> None:
        """Change the maps of people and animals in place: higher in front, lower elsewhere.

        Args:
            maps_KYX: Cosines of all classes, on any grid.
            cosine_Khw: Cosines of all classes at the patches.
            people: Which of the classes mean people.
            animals: Which of the classes are animals.
            least_cosine: An animal whose largest cosine is lower is absent, and keeps its map.
        """
        front = Image.fromarray(self.front_YX / np.float32(255))
        height, width = maps_KYX.shape[1:]
        front_YX = np.asarray(front.resize((width, height), Image.Resampling.BILINEAR))
        if people:
            share_hw = self._people_share(front, cosine_Khw, people)
            share_YX = upsample_bilinear(share_hw[None], (height, width))[0]
            cue_YX = GAIN * front_YX * share_YX - BASE
            for k in people:  # by views: an index of several would copy their maps
                maps_KYX[k] += cue_YX
        for k in animals:
            highest = maps_KYX[k].max()
            if highest >= least_cosine:
                share = ANIMAL_SHARE * (highest - maps_KYX[k].min())
                maps_KYX[k] += share * (front_YX - np.float32(0.5))

    def _people_share(
        self, front: Image.Image, cosine_Khw: Floats, people: Sequence[int]
    ) -> Floats:
        """Share of people in the foreground around each patch, [h, w]."""
        rows, columns = cosine_Khw.shape[1:]
        front_hw = np.asarray(front.resize((columns, rows), Image.Resampling.BOX))
        margin_hw = cosine_Khw[list(people)].max(axis=0) - self.other_N.reshape(rows, columns)
        margin_hw = _around(front_hw * margin_hw) / np.maximum(_around(front_hw), 1e-3)
        return np.asarray(1 / (1 + np.exp(-margin_hw / MARGIN)), np.float32)


def _around(values_hw: Floats) -> Floats:
    """Sum over the window around each patch."""
    side = 2 * REACH + 1
    windows_hwij = sliding_window_view(np.pad(values_hw, REACH), (side, side))
    total_hw: Floats = windows_hwij.sum(axis=(2, 3))
    return total_hw
