"""Options of `tipserve evaluate`: the sets, and what a model is asked for them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from model.preprocess import Fit
from tipserve_cli.engine import UserError
from tipserve_cli.files import read_lines
from tipserve_cli.model_options import OUTPUT, Flag, Positive, as_help, between

TEMPLATE_SETS: Final = ("none", "tcl")
KnownName = Literal[
    "ade20k", "voc21", "context59", "context60", "coco", "flickr30k", "docci", "imagenet", "nyuv2",
    "navi-depth", "navi-normals", "uned", "uned-cars", "uned-food2k", "uned-gldv2", "uned-inat",
    "uned-inshop", "uned-met", "uned-rp2k", "uned-sop",
]  # fmt: skip


@as_help
@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of the command, apart from those of the model.

    Attributes:
        segmentation: Folder of images, folder of masks (x.png for x.jpg), and a file with a name a
            line: label k is the k-th name from 0, and 255 is no class.
        polygons: Folder of images with an annotations.json in COCO's format, whose categories are
            the names. A category with isthing 0 is stuff.
        reduce_zero_label: For masks: label 0 is no class, and label k the k-th name from 1.
        retrieval: Folder of images, each with captions in a .txt file of its name, one a line; or
            of WebDataset shards.
        classification: Folder with a folder of images for each class, named after it.
        instances: Folder with a folder of images for each thing: each image finds the others of
            its thing. With query/ and index/, each of which has these folders, the images of
            query/ are searched in index/.
        knn: Folder with train/ and val/, each as for --classification: the votes of the nearest
            train/ images.
        linear: The same folders: a logistic regression.
        dataset: A known set and its folder, as its authors distribute it.
        depth: Folder of images, and folder of their depth: x.npy in metres, or x.png in
            millimetres, 16 bits. 0 or not finite is no depth.
        normals: Folder of images, and folder of their surface normals: x.npy, unit vectors, or
            x.png, -1 to 1 as 0 to 255. Black, grey 127 or 128, and zero are no normal.
        output: Folder of the report, and of the model's answers, from which a stopped evaluation
            continues.
        mode: For segmentation: whole images, or windows. Default: the model's own.
        fit: For segmentation: keep the aspect ratio, or resize to a square. Default: a square for
            --classes model, as released, and the aspect ratio for names.
        features: For segmentation: the patch embeddings. Default: the model's own.
        quality: For segmentation: of the masks. Default: the model's own.
        background: For segmentation: whether the model finds background itself. With none, objects
            are those pixels whose cosine is at a threshold or above; it is fitted on other images.
        background_level: For --background auto: the cosine that a pixel needs, from 0 for the
            least to 1 for the largest of its class. Default: the model's own.
        background_threshold: For segmentation: pixels with a lower cosine are of the class
            `background`.
        classes: For segmentation: masks by the model's own segmentation head, whose classes have
            the names of the set.
        templates: Sentences for class names: none, tcl, or a file with a sentence a line in which
            {} is the name. Default: the model's own in segmentation, tcl in classification.
        embedding: The embedding of an image, for all other tasks.
        resolution: Resize the short side to this many pixels.
        against: Folder of an earlier report: adds the differences to it.
    """

    segmentation: tuple[Path, Path, Path] | None = None
    polygons: Path | None = None
    reduce_zero_label: Flag = False
    retrieval: Path | None = None
    classification: Path | None = None
    instances: Path | None = None
    knn: Path | None = None
    linear: Path | None = None
    dataset: tuple[KnownName, Path] | None = None
    depth: tuple[Path, Path] | None = None
    normals: tuple[Path, Path] | None = None
    output: Annotated[Path, OUTPUT] = Path("evaluation")
    mode: Literal["whole", "slide"] | None = None
    fit: Fit | None = None
    features: Literal["values", "patches"] | None = None
    quality: Literal["published", "fast", "fine"] | None = None
    background: Literal["none", "auto"] = "none"
    background_level: Annotated[float | None, between(0, 1)] = None
    background_threshold: Annotated[float | None, between(-1, 1)] = None
    classes: Literal["model"] | None = None
    templates: str | None = None
    embedding: Literal["cls1", "cls2"] = "cls1"
    resolution: Positive | None = None
    against: Path | None = None

    @cached_property
    def sentences(self) -> str | tuple[str, ...] | None:
        """The templates: a set by its name, or the sentences of the file."""
        if self.templates is None or self.templates in TEMPLATE_SETS:
            return self.templates
        lines = tuple(read_lines(Path(self.templates)))
        bad = [line for line in lines if line.count("{}") != 1]
        if bad:
            raise UserError(f"{self.templates}: {bad[0]!r} needs {{}} once, where the name stands.")
        return lines

    @property
    def finds_no_background(self) -> bool:
        """Whether every pixel of a mask is of a class."""
        return self.background == "none" and self.background_threshold is None

    def shown(self, *names: str) -> dict[str, Any]:
        """Options for a report, without those that are not given."""
        given = {name: getattr(self, name) for name in names or ("embedding", "resolution")}
        if "templates" in given:
            given["templates"] = self.sentences
        return {name: value for name, value in given.items() if value is not None}
