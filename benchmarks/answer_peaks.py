"""Peak memory of a server for one request of a few kilobytes in every form of answer.

Claim: no request that a stranger makes small takes the process above 512 MiB by default.
Run: python -m benchmarks.answer_peaks
"""

import argparse
import http.client
import io
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.service_process import running_service

SIDE = 6324  # 40 megapixels, the default limit
LIMIT_MIB = 512
MIB = 1024 * 1024
LISTS, BASE64 = "application/json", "application/json base64"
FORMS = (LISTS, BASE64, "application/x-npy", "application/octet-stream", "image/png")
ROUTES = {
    "segment": "/v1/images:segment?classes=dog,cat",
    "segment, scores": "/v1/images:segment?classes=dog,cat&include_scores=true",
    "segment, slide": "/v1/images:segment?classes=dog,cat&mode=slide",
    "segment, overlay": "/v1/images:segment?classes=dog,cat&format=overlay",
    "segment, polygons": "/v1/images:segment?classes=dog,cat&format=polygons",
    "features": "/v1/images:features",
    "features, groups": "/v1/images:features?kind=groups",
    "features, component": "/v1/images:features?kind=component",
    "embed": "/v1/images:embed?outputs=patches,values,cls1,cls2",
    "classify": "/v1/images:classify?classes=dog,cat",
}


def inputs() -> Iterator[tuple[str, str, bytes]]:
    """Small files of large images: a name, a media type, and the file."""
    for name, image, options in (
        ("1-bit PNG", Image.new("1", (SIDE, SIDE)), {}),
        ("palette PNG with transparency", Image.new("P", (SIDE, SIDE)), {"transparency": 0}),
        ("grey JPEG", Image.new("L", (SIDE, SIDE)), {}),
    ):
        stream = io.BytesIO()
        kind = name.rpartition(" ")[2] if "JPEG" in name else "PNG"
        image.save(stream, kind, **options)
        yield name, f"image/{kind.lower()}", stream.getvalue()
    tags = (
        (256, 4, 1), (257, 4, 1), (258, 3, 8), (259, 3, 5), (262, 3, 1), (277, 3, 1),
        (322, 4, 32_752), (323, 4, 65_520), (324, 4, 8), (325, 4, 4),
    )  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\0" + struct.pack("<I", 12) + b"\x80\x00\x20\x20" + struct.pack("<H", len(tags))
    yield "TIFF with a huge tile", "image/tiff", head + entries + bytes(4)


def peak_mib(pid: int, *, reset: bool = False) -> float:
    """Peak resident memory of a process; `reset` starts from what it holds now."""
    if reset:
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def ask(port: int, path: str, form: str, *, media: str, body: bytes) -> tuple[int, int]:
    """Status and length of an answer; it is read and dropped."""
    accept, _, encoding = form.partition(" ")
    path += ("&" if "?" in path else "?") + f"encoding={encoding}" if encoding else ""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", path, body, {"Accept": accept, "Content-Type": media})
        answer = connection.getresponse()
        length = 0
        while piece := answer.read(MIB):
            length += len(piece)
        return answer.status, length
    except OSError:
        return 0, 0
    finally:
        connection.close()


def main() -> None:
    """Ask for each form of each answer, and print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", default="", help="part of an input's name; default: all")
    options = parser.parse_args()
    highest = 0.0
    with running_service() as service:
        pid, port = service.pid, service.http_port
        small = io.BytesIO()
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(small, "PNG")
        for path in ROUTES.values():
            ask(port, path, LISTS, media="image/png", body=small.getvalue())
        print(f"after one small request of each kind: {peak_mib(pid, reset=True):.0f} MiB")
        for name, media, body in inputs():
            if options.input not in name:
                continue
            print(f"\n{name}, {len(body)} bytes")
            for route, path in ROUTES.items():
                for form in FORMS:
                    before = peak_mib(pid, reset=True)
                    status, length = ask(port, path, form, media=media, body=body)
                    if status in {400, 406, 422} and "TIFF" not in name:
                        continue  # there is no such form
                    peak = peak_mib(pid)
                    highest = max(highest, peak)
                    print(
                        f"{route:20} {form:26} {status} {length / 1e6:7.1f} MB  "
                        f"peak {peak:5.0f} MiB (+{max(0.0, peak - before):.0f})",
                        flush=True,
                    )
    print(f"\nhighest peak: {highest:.0f} MiB (claim: at most {LIMIT_MIB})")
    print(f"this client: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    main()
