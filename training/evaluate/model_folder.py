"""Finds the model in whatever folder is to be scored: a run's, or one as transformers writes it."""

from pathlib import Path

from training.methods.teacher import MODEL_FOLDER


def find_model(folder: Path) -> Path:
    """The folder with a run's model, or the folder itself where it holds one.

    Raises:
        FileNotFoundError: There is none (yet).
    """
    for place in (folder / MODEL_FOLDER, folder):
        if (place / "config.json").exists():
            return place
    raise FileNotFoundError(
        f"{folder} holds no model yet: it needs a {MODEL_FOLDER} folder, which a run has from its "
        "first validation on, or a config.json of its own"
    )
