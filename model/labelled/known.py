"""Known sets in the layout of their authors, with class names and published scores.

An incomplete set is scored as it is, without published scores. `known.toml` has the facts of each.
"""

import csv
import json
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from model.class_names import NAMES, ade20k_names
from model.labelled.navi import MULTIVIEW, WILD, NaviDepth, NaviNormals, read_navi
from model.labelled.sets import (
    CaptionedSet,
    DepthSet,
    ImageSet,
    ImageSource,
    InstanceSet,
    LabelledSet,
    Published,
    Query,
    SegmentationSet,
    SetError,
    existing,
    images_below,
    maps_of,
    own_queries,
    read_names,
)

# Sets of UnED, and those with an index beside the test split.
UNED: Final = ("cars", "food2k", "gldv2", "inat", "inshop", "met", "rp2k", "sop")
UNED_INDEXED: Final = frozenset({"gldv2", "inshop", "met"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Facts of a known set; `known.toml` explains them."""

    needs: Sequence[str]
    train_needs: Sequence[str] = ()
    num_images: int
    source: str
    published: Sequence[Published]


def _known(row: dict[str, Any]) -> Known:
    task = row.pop("task", "")
    published = [Published(model, task, *score) for model, *score in row.pop("published", ())]
    return Known(**row, published=published)


_TABLE: Final = Path(__file__).with_name("known.toml").read_text(encoding="utf-8")
KNOWN: Final = {name: _known(row) for name, row in tomllib.loads(_TABLE).items()}


def read_known(name: str, folder: Path) -> ImageSet:
    """Read the images of a known set that are scored; SetError says which part is missing."""
    known = KNOWN[name]
    _check_parts(name, folder, known.needs)
    found = READERS[name](folder)
    if len(found.images) >= known.num_images:
        return replace(found, name=name, published=known.published)
    return replace(found, name=f"{name}, {len(found.images)} of {known.num_images} images")


def read_train(name: str, folder: Path) -> ImageSet:
    """Read the images of a known set that heads are trained on; SetError as for `read_known`."""
    _check_parts(name, folder, KNOWN[name].train_needs)
    found = TRAIN_READERS[name](folder)
    return replace(found, name=name)


def _check_parts(name: str, folder: Path, needs: Iterable[str]) -> None:
    missing = [part for part in needs if not any(folder.glob(part))]
    if missing:
        raise SetError(
            f"{folder} has no {missing[0]}. {name} needs {', '.join(needs)}; it is had at "
            f"{KNOWN[name].source}."
        )


def _ade20k(folder: Path, split: str = "validation") -> SegmentationSet:
    place = folder / "images" / split
    images = images_below(place)
    return SegmentationSet(
        name="",
        images=[ImageSource(path) for path in images],
        maps=maps_of(images, place, folder / "annotations" / split),
        names=ade20k_names(),
        reduce_zero_label=True,
    )


def _pascal(
    folder: Path, *, split: str, masks: str, names: Sequence[str], reduce_zero_label: bool = False
) -> SegmentationSet:
    """Images and masks of the lines of a split file."""
    stems = (folder / "ImageSets" / split / "val.txt").read_text(encoding="utf-8").split()
    images = [folder / "JPEGImages" / f"{stem}.jpg" for stem in stems]
    return SegmentationSet(
        name="",
        images=_sources(images),
        maps=maps_of(images, folder / "JPEGImages", folder / masks),
        names=names,
        reduce_zero_label=reduce_zero_label,
    )


def _karpathy(folder: Path, *, file: str, images: str) -> CaptionedSet:
    """The test split of Karpathy's list; `images` is their folder where the list names none."""
    listed = _json((folder / file).read_text(encoding="utf-8"), folder / file)["images"]
    rows = [row for row in listed if row["split"] == "test"]
    paths = [folder / row.get("filepath", images) / row["filename"] for row in rows]
    captions = [[one["raw"].strip() for one in row["sentences"]] for row in rows]
    return CaptionedSet(name="", images=_sources(paths), captions=captions)


def _docci(folder: Path) -> CaptionedSet:
    file = folder / "docci_descriptions.jsonlines"
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = [row for line in lines if line if (row := _json(line, file))["split"] == "test"]
    return CaptionedSet(
        name="",
        images=_sources(folder / "images" / row["image_file"] for row in rows),
        captions=[[row["description"]] for row in rows],
    )


def _imagenet(folder: Path) -> LabelledSet:
    """`val/` with a folder for each class, or with all images and Kaggle's list of classes."""
    names = dict(line.split(" ", 1) for line in read_names(NAMES / "imagenet.txt"))
    label_of = {wnid: label for label, wnid in enumerate(names)}
    solution = folder / "LOC_val_solution.csv"
    if solution.is_file():
        with solution.open(encoding="utf-8", newline="") as table:
            rows = list(csv.DictReader(table))
        wnids = {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
        place = folder / "ILSVRC" / "Data" / "CLS-LOC" / "val"
        images = images_below(place if place.is_dir() else folder / "val")
        found = [(path, wnids.get(path.stem, "")) for path in images]
    else:
        found = [(path, path.parent.name) for path in images_below(folder / "val")]
    unknown = [path for path, wnid in found if wnid not in label_of]
    if unknown:
        raise SetError(
            f"{unknown[0]} has no class: its folder is no WordNet id such as n01440764, and "
            "LOC_val_solution.csv does not list it."
        )
    return LabelledSet(
        name="",
        images=[ImageSource(path) for path, _ in found],
        labels=[label_of[wnid] for _, wnid in found],
        names=list(names.values()),
    )


def _nyuv2(folder: Path, split: str = "test") -> DepthSet:
    """Images of a split, in the crop of Eigen et al. and between 1 mm and 10 m.

    Source: cleinc/bts, `utils/extract_official_train_test_set_from_mat.py`,
    `utils/eval_with_pngs.py`.
    """
    images = sorted((folder / "official_splits" / split).glob("*/rgb_*.jpg"))
    maps = [path.with_name(f"sync_depth_{path.stem.removeprefix('rgb_')}.png") for path in images]
    return DepthSet(
        name="",
        images=[ImageSource(path) for path in images],
        maps=existing(maps, "depth maps"),
        range_m=(1e-3, 10.0),
        crop=(45, 471, 41, 601),
        size_hw=(480, 640),
    )


def _navi_depth(folder: Path, scenes: str = WILD) -> NaviDepth:
    images = read_navi(folder, scenes)
    return NaviDepth(name="", images=images, maps=[image.depth for image in images])


def _navi_normals(folder: Path, scenes: str = WILD) -> NaviNormals:
    images = read_navi(folder, scenes)
    maps = [image.depth for image in images]
    return NaviNormals(name="", images=images, maps=maps, by_image=True)


def _uned(folder: Path, names: Iterable[str]) -> InstanceSet:
    """Test queries of some of UnED's sets, which are searched in the indices of all of these."""
    number_of: defaultdict[tuple[str, Any], int] = defaultdict()
    number_of.default_factory = number_of.__len__
    indices = {
        name: _uned_split(folder, name, "index" if name in UNED_INDEXED else "test")
        for name in names
    }
    images = [image for found, _ in indices.values() for image in found]
    things: list[int] = []
    queries: list[Query] = []
    for name, (_, classes) in indices.items():
        own = [number_of[name, one[0]] for one in classes]
        if name in UNED_INDEXED:
            asked, wanted = _uned_split(folder, name, "test")
            for place, some in enumerate(wanted, start=len(images)):
                shown = tuple(number_of[name, one] for one in some)
                queries.append(Query(place, shown, group=name))
            images += asked
        else:
            found = own_queries(own)
            queries += [replace(q, place=q.place + len(things), group=name) for q in found]
        things += own
    return InstanceSet(name="", images=images, things=things, queries=queries)


def _uned_split(folder: Path, name: str, split: str) -> tuple[list[ImageSource], list[list[Any]]]:
    """Images and their classes: one, or for some queries several."""
    file = folder / "info_files" / name / f"{split}.json"
    try:
        rows = [(row["path"], row["class_id"]) for row in _json(file.read_text("utf-8"), file)]
    except (OSError, KeyError, TypeError) as error:
        raise SetError(f"{file} is no list of images as UnED has it.") from error
    images = _sources(_uned_image(folder / "images" / path) for path, _ in rows)
    return images, [one if isinstance(one, list) else [one] for _, one in rows]


def _uned_image(path: Path) -> Path:
    """The file of an image; `unzip` may have spelled out the Chinese names of Rp2k."""
    if path.is_file():
        return path
    spelled = "".join(c if c.isascii() else f"#U{ord(c):04x}" for c in str(path))
    return Path(spelled)


def _json(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SetError(f"{file} is no JSON.") from error


def _sources(paths: Iterable[Path]) -> list[ImageSource]:
    return [ImageSource(path) for path in existing(paths)]


CONTEXT: Final = read_names(NAMES / "context59.txt")
_context = partial(_pascal, split="SegmentationContext", masks="SegmentationClassContext")
READERS: Final[Mapping[str, Callable[[Path], ImageSet]]] = {
    "ade20k": _ade20k,
    "voc21": partial(
        _pascal,
        split="Segmentation",
        masks="SegmentationClass",
        names=read_names(NAMES / "voc21.txt"),
    ),
    "context59": partial(_context, names=CONTEXT, reduce_zero_label=True),
    "context60": partial(_context, names=["background", *CONTEXT]),
    "coco": partial(_karpathy, file="dataset_coco.json", images="val2014"),
    "flickr30k": partial(_karpathy, file="dataset_flickr30k.json", images="flickr30k-images"),
    "docci": _docci,
    "imagenet": _imagenet,
    "nyuv2": _nyuv2,
    "navi-depth": _navi_depth,
    "navi-normals": _navi_normals,
    "uned": partial(_uned, names=UNED),
    **{f"uned-{name}": partial(_uned, names=[name]) for name in UNED},
}
TRAIN_READERS: Final[Mapping[str, Callable[[Path], ImageSet]]] = {
    "ade20k": partial(_ade20k, split="training"),
    "nyuv2": partial(_nyuv2, split="train"),
    "navi-depth": partial(_navi_depth, scenes=MULTIVIEW),
    "navi-normals": partial(_navi_normals, scenes=MULTIVIEW),
}
