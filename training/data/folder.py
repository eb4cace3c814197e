"""The data folder: fetched packages, the sprite bank built from them, the source of each split."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from training.data.art import ART_SETS, keywords_by_name
from training.data.backgrounds import load_photos
from training.data.concepts import all_concepts
from training.data.scenes import SceneSource, Split
from training.data.sprites import ArtFolders, SpriteBank, build_bank, concept_names
from training.data.unnamed import UnnamedBank, UnnamedSource, build_unnamed

# Versions are part of the data's determinism.
NPM_PACKAGES = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/fxemoji": "1.2.2",
    "@iconify-json/streamline-emojis": "1.2.4",
    "@iconify-json/streamline-ultimate-color": "1.2.2",
    "@iconify-json/flat-color-icons": "1.2.3",
    "@iconify-json/openmoji": "1.2.29",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "unicode-emoji-json": "0.9.0",
    "cldr-annotations-full": "48.2.0",
}
DEBIAN_PACKAGES = ("openclipart-svg", "sweethome3d-furniture", "lomiri-wallpapers-16.04")
# GPL images, read in place to evaluate on photo-like cut-outs; training refuses them.
STAMPS_PACKAGE = "tuxpaint-stamps-default"
_TIMEOUT_S = 900


def _require(program: str, advice: str) -> None:
    if shutil.which(program) is None:
        raise FileNotFoundError(f"{program} is needed to fetch the data; {advice}")


def fetch_npm(folder: Path) -> None:
    """Install the npm packages into `folder/npm`; a second call changes nothing."""
    _require("npm", "install Node.js 20 or newer")
    target = folder / "npm"
    target.mkdir(parents=True, exist_ok=True)
    manifest = {"name": "tipserve-data", "private": True, "dependencies": NPM_PACKAGES}
    (target / "package.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"],
        cwd=target,
        check=True,
        timeout=_TIMEOUT_S,
    )


def fetch_debian(folder: Path, packages: tuple[str, ...] = DEBIAN_PACKAGES) -> None:
    """Download Debian packages and unpack them into `folder/debian`, without installing them.

    Raises:
        FileNotFoundError: There is no apt here, or it does not know a package.
    """
    _require("apt-get", "elsewhere than on Debian, unpack by hand: " + ", ".join(packages))
    archives = folder / "debian/archives"
    archives.mkdir(parents=True, exist_ok=True)
    missing = [name for name in packages if not any(archives.glob(f"{name}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "update"], check=False, timeout=_TIMEOUT_S)
    for name in missing:
        command = ["apt-get", "download", name]
        subprocess.run(command, cwd=archives, check=False, timeout=_TIMEOUT_S)
        if not any(archives.glob(f"{name}_*.deb")):
            raise FileNotFoundError(f"apt-get cannot download {name}; see its message above")
    for name in packages:
        archive = next(archives.glob(f"{name}_*.deb"))
        command = ["dpkg-deb", "-x", str(archive), str(folder / "debian")]
        subprocess.run(command, check=True, timeout=_TIMEOUT_S)


def fetch(folder: Path, *, with_stamps: bool = False) -> None:
    """Fetch everything that training and its evaluation need: about 250 MB."""
    fetch_npm(folder)
    fetch_debian(folder, (*DEBIAN_PACKAGES, *([STAMPS_PACKAGE] if with_stamps else [])))


TRAIN_STYLES = tuple(art.name for art in ART_SETS if art.trainable)
BANK_STYLES = tuple(art.name for art in ART_SETS if art.name != "stamps")
EMOJI_TRAIN_STYLES = ("noto", "twemoji", "noto-v1", "emojione")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFolder:
    """A folder filled by `python -m training data`."""

    path: Path

    @property
    def art(self) -> ArtFolders:
        """Folders of the fetched art."""
        share = self.path / "debian/usr/share"
        return ArtFolders(
            npm=self.path / "npm/node_modules",
            clip_art=share / "openclipart/svg",
            furniture=share / "sweethome3d/furniture",
            stamps=share / "tuxpaint/stamps",
        )

    @property
    def photos(self) -> Path:
        """The folder of background photos."""
        return self.path / "debian/usr/share/backgrounds"

    def bank(self) -> SpriteBank:
        """Load the sprite bank, or build it once; all sources share one copy.

        Raises:
            FileNotFoundError: The data was not fetched.
        """
        path = self.path / "sprites.npz"
        if not path.exists():
            build_bank(self._fetched_art(), BANK_STYLES).save(path)
        return _cached_bank(path, path.stat().st_mtime_ns)

    def unnamed(self, seed: int = 0) -> UnnamedSource:
        """Load the drawings without a concept's name, or render them once.

        Raises:
            FileNotFoundError: The data was not fetched.
        """
        path = self.path / "unnamed.npz"
        bank = UnnamedBank.kept(path, lambda: build_unnamed(self._fetched_art()))
        return UnnamedSource(bank=bank, photos=load_photos(self.photos, "train"), seed=seed)

    def keywords(self) -> dict[str, tuple[str, ...]]:
        """CLDR keywords by concept, without the names of unseen concepts."""
        by_drawing = keywords_by_name(self.art.npm)
        concepts = all_concepts()
        unseen = {concept.name for concept in concepts if concept.is_unseen}
        return {
            concept.name: tuple(
                dict.fromkeys(
                    word
                    for drawing in concept.drawings
                    for word in by_drawing.get(drawing, ())
                    if word not in unseen
                )
            )
            for concept in concepts
        }

    def source(
        self, split: Split, *, styles: tuple[str, ...], names: frozenset[str], seed: int = 0
    ) -> SceneSource:
        """Build a split's source; only training scenes get the training photos.

        Raises:
            ValueError: A training split names art that may not be trained on, or unseen concepts.
        """
        if split == "train" and set(styles) - set(TRAIN_STYLES):
            raise ValueError(f"training may only use {TRAIN_STYLES}, not {styles}")
        if split == "train" and names - seen_names():
            raise ValueError(f"training may not see {sorted(names - seen_names())}")
        return SceneSource(
            bank=self.bank(),
            styles=styles,
            photos=load_photos(self.photos, "train" if split == "train" else "held-out"),
            keywords=self.keywords(),
            names=names,
            split=split,
            seed=seed,
        )

    def stamp_source(self) -> SceneSource | None:
        """Source of scenes of photo-like stamps; None if that package was not fetched."""
        if not self.art.stamps.exists():
            return None
        bank = build_bank(self.art, ["stamps"])
        concepts = all_concepts()
        return SceneSource(
            bank=bank,
            styles=("stamps",),
            photos=load_photos(self.photos, "held-out"),
            keywords={},
            names=frozenset(concepts[i].name for i in bank.by_concept(["stamps"])) & seen_names(),
            split="test",
        )

    def _fetched_art(self) -> ArtFolders:
        if not self.art.npm.exists():
            raise FileNotFoundError(
                f"No data in {self.path}: run `python -m training data --folder {self.path}`"
            )
        return self.art


@lru_cache(maxsize=1)
def _cached_bank(path: Path, _written_ns: int) -> SpriteBank:
    return load_bank(path)


def load_bank(path: Path) -> SpriteBank:
    """Read a bank.

    Raises:
        ValueError: It was built for another vocabulary.
    """
    bank = SpriteBank.load(path)
    if bank.names != concept_names():
        raise ValueError(
            f"{path} was built for other concepts; delete it and run "
            "`python -m training data` again"
        )
    return bank


def seen_names() -> frozenset[str]:
    """Names that training may use."""
    return frozenset(concept.name for concept in all_concepts() if not concept.is_unseen)


def common_names() -> frozenset[str]:
    """The 50 everyday names of the main score."""
    return frozenset(concept.name for concept in all_concepts() if concept.is_common)
