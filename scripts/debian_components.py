"""Adds Debian's packages to a bill of materials in CycloneDX, which lists only Python's.

`debian_components.py FILE < LIST`; the Dockerfile makes the list by dpkg-query.
"""

import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote


def components(lines: Iterable[str], distribution: str) -> list[dict[str, Any]]:
    """One component for each line `name, version, architecture`, separated by tabs."""
    found = []
    for line in lines:
        name, version, architecture = line.rstrip("\n").split("\t")
        name = name.partition(":")[0]
        purl = f"pkg:deb/{distribution}/{quote(name)}@{quote(version)}?arch={architecture}"
        found.append(
            {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        )
    return found


def main() -> None:
    """Rewrite the file in the first argument."""
    path = Path(sys.argv[1])
    bill = json.loads(path.read_text(encoding="utf-8"))
    distribution = platform.freedesktop_os_release()["ID"]
    bill["components"] += components(sys.stdin, distribution)
    path.write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
