"""One image's mask as JSON: an array, or each class as COCO has it.

Shape legend: H W pixels.
"""

from collections.abc import Sequence
from typing import Any

from service.masks.mask_codec import class_color
from service.masks.polygons import class_polygons
from service.masks.run_lengths import class_runs, compress_counts
from service.messages import Segmentation
from service.rest.json_body import encode_array
from service.rest.schemas import SegmentImagesOptions


def mask_body(
    mask: Segmentation, names: Sequence[str], options: SegmentImagesOptions
) -> dict[str, Any]:
    """The mask in the format that the options name."""
    height, width = mask.labels_HW.shape
    background_share, *shares = mask.area_shares
    classes = [
        {"label": label, "name": name, "color": class_color(label), "area_share": share}
        for label, (name, share) in enumerate(zip(names, shares, strict=True), start=1)
    ]
    body = {
        "height": height,
        "width": width,
        "classes": classes,
        "background_share": background_share,
    }
    if options.format == "mask":
        body["labels"] = encode_array(mask.wire_labels, options.encoding)
    else:
        for entry, region in zip(classes, _regions(mask, len(names), options), strict=True):
            entry.update(region)
    if mask.scores_HW is not None:
        body["scores"] = encode_array(mask.scores_HW, options.encoding)
    return body


def _regions(
    mask: Segmentation, num_classes: int, options: SegmentImagesOptions
) -> list[dict[str, Any]]:
    """Area, bounding box and outline of each class, under the names of COCO's annotations."""
    runs = class_runs(mask.labels_HW, num_classes)
    if options.format == "polygons":
        outlines: list[Any] = class_polygons(mask.labels_HW, num_classes)
    else:
        counts = [run.counts for run in runs]
        numbers: list[Any] = compress_counts(counts) if options.format == "rle" else counts
        outlines = [{"size": mask.labels_HW.shape, "counts": n} for n in numbers]
    return [
        {"area": run.area, "bbox": run.box, "segmentation": outline}
        for run, outline in zip(runs, outlines, strict=True)
    ]
