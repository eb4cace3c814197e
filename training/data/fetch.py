"""Fetches the art, names and photos of scenes from npm and Debian, without being root."""

import json
import shutil
import subprocess
from pathlib import Path

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
    for package in packages:
        archive = _archive(archives, package) or _download(archives, package)
        subprocess.run(
            ["dpkg-deb", "-x", str(archive), str(folder / "debian")],
            check=True,
            timeout=_TIMEOUT_S,
        )


def _archive(archives: Path, package: str) -> Path | None:
    return next(iter(archives.glob(f"{package}_*.deb")), None)


def _download(archives: Path, package: str) -> Path:
    """Download a package, with fresh lists where the first try does not know it."""
    for command in (None, ["apt-get", "update"]):
        if command is not None:
            subprocess.run(command, check=False, timeout=_TIMEOUT_S)
        subprocess.run(
            ["apt-get", "download", package], cwd=archives, check=False, timeout=_TIMEOUT_S
        )
        archive = _archive(archives, package)
        if archive is not None:
            return archive
    raise FileNotFoundError(f"apt-get cannot download {package}; see its message above")


def fetch(folder: Path, *, with_stamps: bool = False) -> None:
    """Fetch everything that training and its evaluation need: about 250 MB."""
    fetch_npm(folder)
    fetch_debian(folder, (*DEBIAN_PACKAGES, *([STAMPS_PACKAGE] if with_stamps else [])))
