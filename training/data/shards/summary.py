"""Says what a data set of images holds and what each loss will find in it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from training.data.caption_sampling import CaptionSampling
from training.data.crops import CropConfig
from training.data.shards.sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """Counts of a data set.

    Attributes:
        num_images: All images.
        num_captioned: Those with a caption of any source.
        num_named: Those of which it is known exactly what they show.
        caption_sources: Images that have a caption of each source.
    """

    num_images: int = 0
    num_captioned: int = 0
    num_named: int = 0
    caption_sources: Mapping[str, int] = field(default_factory=dict)


def summarize(samples: Iterable[Sample]) -> DataSummary:
    """Count samples and their captions."""
    return total(
        DataSummary(
            num_images=1,
            num_captioned=bool(sample.captions),
            num_named=bool(sample.names),
            caption_sources=dict.fromkeys(sample.captions, 1),
        )
        for sample in samples
    )


def total(parts: Iterable[DataSummary]) -> DataSummary:
    """Add summaries up."""
    images = captioned = named = 0
    sources: Counter[str] = Counter()
    for part in parts:
        images += part.num_images
        captioned += part.num_captioned
        named += part.num_named
        sources.update(part.caption_sources)
    return DataSummary(
        num_images=images,
        num_captioned=captioned,
        num_named=named,
        caption_sources=dict(sorted(sources.items())),
    )


def describe(
    summary: DataSummary, *, captions: CaptionSampling, crops: CropConfig
) -> tuple[str, ...]:
    """Say, a line each, what there is and what each kind of loss will use."""
    lines = [
        f"{summary.num_images} images, {summary.num_captioned} of them with captions"
        + (f" ({_counts(summary.caption_sources)})" if summary.caption_sources else "")
    ]
    if summary.num_captioned:
        for token, sources in (("CLS1", captions.cls1), ("CLS2", captions.cls2)):
            lines.append(caption_line(token, sources, summary))
    else:
        lines.append(
            "contrast with captions: off, for there are none; the text tower learns nothing"
        )
    if summary.num_named:
        lines.append(f"contrast with names: {summary.num_named} images, whose content is listed")
    else:
        lines.append("contrast with names: off, for no image lists what it shows")
    lines.append(
        f"local crops to global: all {summary.num_images} images, {crops.num_local} crops each"
        if crops.num_local
        else "local crops to global: off, for crops.num_local is 0"
    )
    lines.append(f"patches: all {summary.num_images} images")
    return tuple(lines)


def caption_line(token: str, sources: Sequence[str], summary: DataSummary) -> str:
    """Say which captions a CLS token meets."""
    found = {source: summary.caption_sources.get(source, 0) for source in sources}
    if not any(found.values()):
        return (
            f"{token} with captions: {summary.num_captioned} images, from whatever each has, for "
            f"none has {' or '.join(sources)}; data.captions.{token.strip().lower()} names others"
        )
    line = f"{token} with captions: {summary.num_captioned} images, from {_counts(found)}"
    if sum(found.values()) < summary.num_captioned:
        line += "; an image without any of these takes whatever caption it has"
    return line


def _counts(sources: Mapping[str, int]) -> str:
    return ", ".join(f"{source} {count}" for source, count in sources.items())
