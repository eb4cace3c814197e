"""`python -m training.photographs.general_words DATA PACKAGE`: the table of general words.

A word's members are the names of ImageNet's classes and of emojis that WordNet has below it, and a
few that it has elsewhere. Members that are far from each other are taken first.

Legend: M members, D embedding width.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.class_names import NAMES
from model.foreground import PEOPLE_WORDS
from model.general_words import MAX_MEMBERS, WORDS_FILE, write_words
from model.package import open_package, write_manifest
from model.runtime.load import load_runtime
from model.segmentation import l2_normalize
from model.text import TextTokenizer
from training.data.art import emoji_groups
from training.data.folder import DataFolder, fetch_debian

WORDNET_PACKAGE = "wordnet-base"
# Words whose own map was as good as that of their members, such as train or boat, are left out.
_MOST_FREQUENT_SENSE = """
animal, mammal, dog, cat, bird, fish, insect, reptile, snake, lizard, monkey, bear, rodent,
butterfly, spider, beetle, flower, tree, fruit, vegetable, dessert, bread, meat, vehicle, car,
truck, aircraft, building, furniture, chair, clothing, hat, shoe, tool, weapon, toy, clock,
bottle, musical instrument, stringed instrument, wind instrument, cooking utensil,
sports equipment, electronic equipment
"""
# With the number of the sense in WordNet that is meant.
WORDS = {word.strip(): 0 for word in _MOST_FREQUENT_SENSE.split(",")} | {
    "food": 1,
    "plant": 1,
    "shellfish": 1,
    "turtle": 1,
}
# WordNet has these elsewhere, or the names above have none of them.
FURTHER = {
    "flower": "rose, tulip, sunflower, dandelion, hibiscus, lily, orchid, poppy, cherry blossom, "
    "lotus, carnation, daffodil, bouquet, blossom",
    "tree": "oak tree, pine tree, maple tree, birch, willow tree, palm tree, fir tree, "
    "deciduous tree, evergreen tree",
}
# The encoder knows no people, but what they wear.
PEOPLE = (
    "person, man, woman, people, bridegroom, baseball player, scuba diver, face, suit, jersey, "
    "academic gown, lab coat, jeans, sweatshirt, sunglasses, wig, trench coat, fur coat, cardigan, "
    "poncho, kimono, military uniform, windsor tie, lipstick, bikini, miniskirt, sarong, pajamas, "
    "apron, cowboy hat, swimming cap, ski mask, seat belt, stole, cloak, vestment"
)
# The model finds these wherever there is grass, snow, a path or water.
LEFT_OUT = frozenset({"grasshopper", "snowmobile", "snowplow", "mountain bike", "water jug"})
_GROUPS = frozenset(
    ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
)


@dataclass(frozen=True, slots=True)
class WordNet:
    """WordNet's nouns.

    Attributes:
        senses: Synsets of each noun, the most frequent one first.
        above: Synsets directly above each synset.
    """

    senses: Mapping[str, Sequence[str]]
    above: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls, folder: Path) -> "WordNet":
        """Read `index.noun` and `data.noun`; their formats are those of wndb(5WN)."""
        senses, above = {}, {}
        for fields in _lines(folder / "index.noun"):
            senses[fields[0].replace("_", " ")] = fields[6 + int(fields[3]) :]
        for fields in _lines(folder / "data.noun"):
            pointers = fields[5 + 2 * int(fields[3], 16) :]
            above[fields[0]] = [
                target
                for symbol, target in zip(pointers[::4], pointers[1::4], strict=False)
                if symbol in {"@", "@i"}
            ]
        return cls(senses, above)

    def is_below(self, synset: str, other: str) -> bool:
        """Whether a synset is another one, or lies below it."""
        return synset == other or any(self.is_below(up, other) for up in self.above[synset])


def _lines(path: Path) -> Iterator[list[str]]:
    for line in path.read_text(encoding="ascii").splitlines():
        if not line.startswith(" "):  # the licence
            yield line.partition(" | ")[0].split()


def known_names(wordnet: WordNet, npm: Path) -> dict[str, str]:
    """Synset of each name of an ImageNet class or of an emoji."""
    found = {}
    for line in (NAMES / "imagenet.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            number, name = line.split(" ", 1)
            found[re.sub(r" \(.*\)", "", name).lower()] = number.removeprefix("n")
    for name, group in emoji_groups(npm).items():
        plain = name.lower().removesuffix(" face")
        if group in _GROUPS and plain in wordnet.senses:
            found.setdefault(plain, wordnet.senses[plain][0])
    return found


def spread(unit_MD: NDArray[np.float32], count: int) -> list[int]:
    """Choose members so that the cosine of all of them with the nearest chosen one is highest."""
    cosine_MM = unit_MD @ unit_MD.T
    best_M = np.full(len(unit_MD), -1, np.float32)
    chosen: list[int] = []
    while len(chosen) < min(count, len(unit_MD)):
        gain_M = np.maximum(cosine_MM, best_M).sum(axis=1)
        gain_M[chosen] = -np.inf
        chosen.append(int(gain_M.argmax()))
        best_M = np.maximum(best_M, cosine_MM[chosen[-1]])
    return chosen


def build(data: DataFolder, source: str | Path) -> None:
    """Write the table into a package, and list it in the manifest."""
    fetch_debian(data.path, (WORDNET_PACKAGE,))
    wordnet = WordNet.read(data.path / "debian/usr/share/wordnet")
    known = known_names(wordnet, data.art.npm)
    package = open_package(source)
    tokenizer, runtime = TextTokenizer.from_package(package), load_runtime(package)

    @cache
    def embed(text: str) -> NDArray[np.float32]:
        tokens = tokenizer.encode([text])
        return l2_normalize(runtime.encode_texts(tokens.token_ids_BL, tokens.mask_BL)[0])

    table = {}
    for word, sense in WORDS.items():
        synset = wordnet.senses[word][sense]
        below = [name for name, own in known.items() if wordnet.is_below(own, synset)]
        further = FURTHER[word].split(", ") if word in FURTHER else []
        members = [n for n in dict.fromkeys([*further, *below]) if n not in LEFT_OUT | {word}]
        unit_MD = np.stack([embed(name) for name in members])
        table[word] = [members[place] for place in spread(unit_MD, MAX_MEMBERS)]
    for word in PEOPLE_WORDS:
        table[word] = [name for name in PEOPLE.split(", ") if name != word]
    embeddings = {name: embed(name) for group in table.values() for name in group}
    write_words(package.path / WORDS_FILE, table, embeddings)
    write_manifest(package.path, package.manifest)


if __name__ == "__main__":
    build(DataFolder(path=Path(sys.argv[1])), sys.argv[2])
