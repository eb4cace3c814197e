"""Opens a folder as what it is, shards or plain images, and says what it holds."""

from pathlib import Path

from training.data.caption_sampling import CaptionSampling
from training.data.crops import TIPSV2_CROPS, CropConfig
from training.data.shards.image_folder import ImageFolder
from training.data.shards.manifest import MANIFEST_FILE, ShardStore
from training.data.shards.store import ImageStore
from training.data.shards.summary import describe


def open_store(folder: Path) -> ImageStore:
    """Open a folder of shards, or else of plain images.

    Raises:
        FileNotFoundError: It holds neither; the message says what to do about it.
    """
    if (folder / MANIFEST_FILE).exists() or any(folder.glob("*.tar")):
        return ShardStore(folder)
    return ImageFolder(folder)


def describe_folder(
    folder: Path,
    *,
    captions: CaptionSampling | None = None,
    crops: CropConfig = TIPSV2_CROPS,
) -> tuple[str, ...]:
    """Say, a line each, what a folder holds and what each kind of loss will use of it.

    Raises:
        FileNotFoundError: It holds neither shards nor images.
    """
    store = open_store(folder)
    kind = "shards" if isinstance(store, ShardStore) else "plain images"
    sampling = CaptionSampling() if captions is None else captions
    lines = describe(store.summary(), captions=sampling, crops=crops)
    return f"{folder} holds {kind}:", *lines
