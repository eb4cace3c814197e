"""Known sets in the layout of their authors, with class names and published scores.

An incomplete set is scored as it is, without published scores.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from model.class_names import NAMES, ade20k_names
from model.labelled.navi import MULTIVIEW, WILD, NaviDepth, NaviNormals, read_navi
from model.labelled.sets import (
    CLASSIFICATION,
    DEPTH,
    INSTANCES,
    NORMALS,
    RETRIEVAL,
    SEGMENTATION,
    CaptionedSet,
    DepthSet,
    ImageSource,
    InstanceSet,
    LabelledSet,
    NormalSet,
    Published,
    Query,
    SegmentationSet,
    SetError,
    images_below,
    masks_of,
    own_queries,
    read_names,
)

KnownSet = SegmentationSet | CaptionedSet | LabelledSet | DepthSet | NormalSet | InstanceSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A known set.

    Attributes:
        read: Reads it from a folder.
        needs: Files and folders that it needs, or patterns of them.
        num_images: Images of the whole set; some lists have one more.
        source: Where it is had.
        published: Scores of the whole set.
    """

    read: Callable[[Path], KnownSet]
    needs: tuple[str, ...]
    num_images: int
    source: str
    published: tuple[Published, ...]


def read_known(name: str, folder: Path) -> KnownSet:
    """Read the images of a known set that are scored.

    Raises:
        SetError: A part is missing; the message says which, and where the set is had.
    """
    return _read(name, folder, LAYOUTS[name])


def read_train(name: str, folder: Path) -> KnownSet:
    """Read the images of a known set that heads are trained on.

    Raises:
        SetError: A part is missing; the message says which, and where the set is had.
    """
    return _read(name, folder, TRAINED_ON[name])


def _read(name: str, folder: Path, layout: Layout) -> KnownSet:
    missing = [part for part in layout.needs if not any(folder.glob(part))]
    if missing:
        raise SetError(
            f"{folder} has no {missing[0]}. {name} needs {', '.join(layout.needs)}; it is had at "
            f"{layout.source}."
        )
    found = layout.read(folder)
    if len(found.images) >= layout.num_images:
        return replace(found, name=name, published=layout.published)
    return replace(found, name=f"{name}, {len(found.images)} of {layout.num_images} images")


def _ade20k(folder: Path, split: str = "validation") -> SegmentationSet:
    place = folder / "images" / split
    images = images_below(place)
    return SegmentationSet(
        name="",
        images=[ImageSource(path) for path in images],
        masks=masks_of(images, place, folder / "annotations" / split),
        names=ade20k_names(),
        reduce_zero_label=True,
    )


def _pascal(folder: Path, split: str, masks: str) -> tuple[list[ImageSource], list[Path]]:
    """Images and masks of the lines of a split file."""
    stems = (folder / split).read_text(encoding="utf-8").split()
    images = [folder / "JPEGImages" / f"{stem}.jpg" for stem in stems]
    return _existing(images), masks_of(images, folder / "JPEGImages", folder / masks)


def _voc21(folder: Path) -> SegmentationSet:
    images, masks = _pascal(folder, "ImageSets/Segmentation/val.txt", "SegmentationClass")
    names = read_names(NAMES / "voc21.txt")
    return SegmentationSet(name="", images=images, masks=masks, names=names)


def _context(folder: Path, *, has_background: bool) -> SegmentationSet:
    images, masks = _pascal(
        folder, "ImageSets/SegmentationContext/val.txt", "SegmentationClassContext"
    )
    names = ["background"] * has_background + read_names(NAMES / "context59.txt")
    return SegmentationSet(
        name="", images=images, masks=masks, names=names, reduce_zero_label=not has_background
    )


def _karpathy(folder: Path, *, file: str, images: str) -> CaptionedSet:
    """The test split of Karpathy's lists.

    Args:
        folder: Holds the list and the images.
        file: Name of the list.
        images: Folder of the images, where the list names none.
    """
    listed = _json((folder / file).read_text(encoding="utf-8"), folder / file)["images"]
    rows = [row for row in listed if row["split"] == "test"]
    paths = [folder / row.get("filepath", images) / row["filename"] for row in rows]
    captions = [[one["raw"].strip() for one in row["sentences"]] for row in rows]
    return CaptionedSet(name="", images=_existing(paths), captions=captions)


def _docci(folder: Path) -> CaptionedSet:
    file = folder / "docci_descriptions.jsonlines"
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = [row for line in lines if line if (row := _json(line, file))["split"] == "test"]
    return CaptionedSet(
        name="",
        images=_existing(folder / "images" / row["image_file"] for row in rows),
        captions=[[row["description"]] for row in rows],
    )


def _imagenet(folder: Path) -> LabelledSet:
    """`val/` with a folder for each class, or with all images and Kaggle's list of classes."""
    names = dict(line.split(" ", 1) for line in read_names(NAMES / "imagenet.txt"))
    label_of = {wnid: label for label, wnid in enumerate(names)}
    solution = folder / "LOC_val_solution.csv"
    if solution.is_file():
        with solution.open(encoding="utf-8", newline="") as table:
            wnids = {
                row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(table)
            }
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

    Source: cleinc/bts, `utils/extract_official_train_test_set_from_mat.py` for the layout, and
    `utils/eval_with_pngs.py` for what counts.
    """
    images = sorted((folder / "official_splits" / split).glob("*/rgb_*.jpg"))
    maps = [path.with_name(f"sync_depth_{path.stem.removeprefix('rgb_')}.png") for path in images]
    missing = [path for path in maps if not path.is_file()]
    if missing:
        raise SetError(
            f"{len(missing)} of {len(maps)} depth maps are missing, such as {missing[0]}."
        )
    return DepthSet(
        name="",
        images=[ImageSource(path) for path in images],
        maps=maps,
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
    index: list[ImageSource] = []
    things: list[int] = []
    queries: list[Query] = []
    number_of: defaultdict[tuple[str, Any], int] = defaultdict()
    number_of.default_factory = number_of.__len__
    for name in names:
        split = "index" if name in UNED_INDEXED else "test"
        images, classes = _uned_split(folder, name, split)
        own = [number_of[name, one[0]] for one in classes]
        if split == "test":
            found = own_queries(images, own)
            queries += [replace(q, place=q.place + len(index), group=name) for q in found]
        else:
            asked, wanted = _uned_split(folder, name, "test")
            queries += [
                Query(image, tuple(number_of[name, one] for one in some), group=name)
                for image, some in zip(asked, wanted, strict=True)
            ]
        index += images
        things += own
    return InstanceSet(name="", index=index, things=things, queries=queries)


def _uned_split(folder: Path, name: str, split: str) -> tuple[list[ImageSource], list[list[Any]]]:
    """Images and their classes: one, or for some queries several."""
    file = folder / "info_files" / name / f"{split}.json"
    try:
        rows = [(row["path"], row["class_id"]) for row in _json(file.read_text("utf-8"), file)]
    except (OSError, KeyError, TypeError) as error:
        raise SetError(f"{file} is no list of images as UnED has it.") from error
    images = _existing(_uned_image(folder / "images" / path) for path, _ in rows)
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


def _existing(paths: Iterable[Path]) -> list[ImageSource]:
    listed = list(paths)
    missing = [path for path in listed if not path.is_file()]
    if missing:
        raise SetError(f"{len(missing)} of {len(listed)} images are missing, such as {missing[0]}.")
    return [ImageSource(path) for path in listed]


def _miou(rows: Sequence[tuple[str, float, str]]) -> tuple[Published, ...]:
    return tuple(
        Published(model=model, task=SEGMENTATION, metric="mIoU", value=value, protocol=protocol)
        for model, value, protocol in rows
    )


def _recall(rows: Sequence[tuple[str, float, float]]) -> tuple[Published, ...]:
    ways = ("image to text R@1", "text to image R@1")
    return tuple(
        Published(model=model, task=RETRIEVAL, metric=way, value=value)
        for model, *both in rows
        for way, value in zip(ways, both, strict=True)
    )


def _published(
    task: str, metric: str, rows: Mapping[str, float], protocol: str
) -> tuple[Published, ...]:
    return tuple(
        Published(model=model, task=task, metric=metric, value=value, protocol=protocol)
        for model, value in rows.items()
    )


# Scores: TIPSv2 (arXiv:2604.12012), tables 5 to 8, and the README and notebook of
# google-deepmind/tips. TIPSv2's treatment of `background`, and its prompts of PASCAL's names, are
# not published.
LAYOUTS: Final[dict[str, Layout]] = {
    "ade20k": Layout(
        read=_ade20k,
        needs=("images/validation", "annotations/validation"),
        num_images=2000,
        source="http://sceneparsing.csail.mit.edu (ADEChallengeData2016)",
        published=_miou(
            [
                ("TIPSv2 L/14", 25.06, "slide, notebook"),
                ("TIPSv2 B/14", 17.4, "README"),
                ("TIPSv2 L/14", 24.7, "README"),
                ("TIPSv2 SO/14", 23.3, "README"),
                ("TIPSv2 g/14", 17.8, "README"),
                ("TIPS L/14", 20.8, "table 5"),
            ]
        ),
    ),
    "voc21": Layout(
        read=_voc21,
        needs=("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/val.txt"),
        num_images=1449,
        source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012 (VOCdevkit/VOC2012)",
        published=_miou([("TIPSv2 L/14", 44.4, "table 5"), ("TIPS L/14", 30.5, "table 5")]),
    ),
    "context59": Layout(
        read=lambda folder: _context(folder, has_background=False),
        needs=(
            "JPEGImages",
            "SegmentationClassContext",
            "ImageSets/SegmentationContext/val.txt",
        ),
        num_images=5104,  # 5105 in some lists
        source="https://cs.stanford.edu/~roozbeh/pascal-context (VOCdevkit/VOC2010; masks as "
        "mmsegmentation's converter writes them)",
        published=_miou([("TIPSv2 L/14", 37.1, "table 5"), ("TIPS L/14", 33.5, "table 5")]),
    ),
    "coco": Layout(
        read=lambda folder: _karpathy(folder, file="dataset_coco.json", images="val2014"),
        needs=("dataset_coco.json", "val2014"),
        num_images=5000,
        source="https://cocodataset.org (val2014), and its list at "
        "https://cs.stanford.edu/people/karpathy/deepimagesent",
        published=_recall([("TIPSv2 g/14", 75.7, 60.7), ("TIPSv2 L/14", 73.5, 57.4)]),
    ),
    "flickr30k": Layout(
        read=lambda folder: _karpathy(
            folder, file="dataset_flickr30k.json", images="flickr30k-images"
        ),
        needs=("dataset_flickr30k.json", "flickr30k-images"),
        num_images=1000,
        source="https://shannon.cs.illinois.edu/DenotationGraph, and its list at "
        "https://cs.stanford.edu/people/karpathy/deepimagesent",
        published=_recall(
            [
                ("TIPSv2 B/14", 92.6, 80.0),
                ("TIPSv2 L/14", 95.4, 83.3),
                ("TIPSv2 SO/14", 94.8, 84.0),
                ("TIPSv2 g/14", 95.1, 85.9),
            ]
        ),
    ),
    "docci": Layout(
        read=_docci,
        needs=("docci_descriptions.jsonlines", "images"),
        num_images=5000,
        source="https://google.github.io/docci",
        published=_recall([("TIPSv2 g/14", 68.9, 72.8), ("TIPS g/14", 57.2, 58.8)]),
    ),
    "imagenet": Layout(
        read=_imagenet,
        needs=(),
        num_images=50_000,
        source="https://image-net.org (ILSVRC2012)",
        published=tuple(
            Published(model=model, task=CLASSIFICATION, metric="top-1", value=value)
            for model, value in (("TIPSv2 L/14", 79.7), ("TIPSv2 g/14", 80.7))
        ),
    ),
}
LAYOUTS["context60"] = replace(
    LAYOUTS["context59"],
    read=lambda folder: _context(folder, has_background=True),
    published=_miou([("TIPSv2 L/14", 33.9, "table 5"), ("TIPS L/14", 30.4, "table 5")]),
)
LAYOUTS["nyuv2"] = Layout(
    read=_nyuv2,
    needs=("official_splits/test/*/rgb_*.jpg",),
    num_images=654,
    source="https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html (nyu_depth_v2_labeled.mat, in "
    "files by utils/extract_official_train_test_set_from_mat.py of https://github.com/cleinc/bts)",
    published=_published(
        DEPTH,
        "RMSE (m)",
        {
            "TIPSv2 B/14": 0.374,
            "TIPSv2 L/14": 0.339,
            "TIPSv2 SO/14": 0.339,
            "TIPSv2 g/14": 0.334,
            "DINOv2 g/14": 0.372,
        },
        "linear probe",
    ),
)
NAVI: Final = Layout(
    read=_navi_depth,
    needs=("*/wild_set/annotations.json",),
    num_images=2298,
    source="https://github.com/google/navi (navi_v1.5.tar.gz)",
    published=_published(
        DEPTH,
        "RMSE (m)",
        {"TIPSv2 g/14": 0.059, "TIPS g/14": 0.058, "DINOv2 g/14": 0.054},
        "DPT trained on NAVI",
    ),
)
LAYOUTS["navi-depth"] = NAVI
LAYOUTS["navi-normals"] = replace(
    NAVI,
    read=_navi_normals,
    published=_published(
        NORMALS,
        "RMSE (degrees)",
        {"TIPSv2 g/14": 24.1, "TIPS g/14": 24.2, "DINOv2 g/14": 24.0},
        "DPT trained on NAVI",
    ),
)
# The images that heads are trained on; NAVI's as Probe3D chooses them.
TRAINED_ON: Final[dict[str, Layout]] = {
    name: replace(LAYOUTS[name], read=read, needs=needs, num_images=0, published=())
    for name, read, needs in (
        (
            "ade20k",
            partial(_ade20k, split="training"),
            ("images/training", "annotations/training"),
        ),
        ("nyuv2", partial(_nyuv2, split="train"), ("official_splits/train/*/rgb_*.jpg",)),
        (
            "navi-depth",
            partial(_navi_depth, scenes=MULTIVIEW),
            (f"*/{MULTIVIEW}/annotations.json",),
        ),
        (
            "navi-normals",
            partial(_navi_normals, scenes=MULTIVIEW),
            (f"*/{MULTIVIEW}/annotations.json",),
        ),
    )
}
# Images of the test split, and of the index where a set has one beside it.
# Source: nikosips/Universal-Image-Embeddings, `universal_embedding/dataset_infos.py`.
UNED_INDEXED: Final = frozenset({"gldv2", "inshop", "met"})
UNED_IMAGES: Final = {
    "cars": 8131,
    "food2k": 9979,
    "gldv2": 1129 + 761_757,
    "inat": 136_093,
    "inshop": 14_218 + 12_612,
    "met": 1003 + 397_121,
    "rp2k": 10_931,
    "sop": 60_502,
}
UNED_SOURCE: Final = (
    "https://cmp.felk.cvut.cz/univ_emb (info_files.zip, and the address of each set's images)"
)


def _uned_layout(*names: str, published: tuple[Published, ...] = ()) -> Layout:
    lists = [f"{name}/test.json" for name in names]
    lists += [f"{name}/index.json" for name in names if name in UNED_INDEXED]
    return Layout(
        read=partial(_uned, names=names),
        needs=("images", *(f"info_files/{one}" for one in lists)),
        num_images=sum(UNED_IMAGES[name] for name in names),
        source=UNED_SOURCE,
        published=published,
    )


LAYOUTS.update({f"uned-{name}": _uned_layout(name) for name in UNED_IMAGES})
UNED_SCORES: Final = {"TIPSv2 g/14": 67.0, "TIPS g/14": 68.2, "DINOv2 g/14": 62.7}
LAYOUTS["uned"] = _uned_layout(
    *UNED_IMAGES, published=_published(INSTANCES, "R@1", UNED_SCORES, "mean over the eight sets")
)
