"""CPU time of an image sent alone, against one sent in a batch, through the whole service.

Claim: on a CPU, a batch costs about as much as its images one by one; it saves only
the cost per request.
Run: python -m benchmarks.batch_latency [--model bundled-student] [--resolution 112]
"""

import argparse
import io
import time
from dataclasses import dataclass

import grpc
import numpy as np
from PIL import Image

from benchmarks.service_process import RunningService, running_service
from service.grpc.generated import embed_pb2, encoder_service_pb2_grpc, image_pb2

IMAGES_PER_REQUEST = (1, 2, 4, 8, 16)
RPC_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Measured cost of one request size."""

    num_images: int
    batch_images: float
    cpu_ms: float
    wall_ms: float


def photo_like_jpeg(seed: int) -> bytes:
    """Return a 640 x 480 JPEG with smooth content like a photo."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure(
    service: RunningService,
    stub: encoder_service_pb2_grpc.EncoderServiceStub,
    num_images: int,
    *,
    total_images: int,
    resolution: int | None,
) -> Row:
    """Send `total_images` images, `num_images` per request, one request at a time."""
    images = [image_pb2.Image(encoded=photo_like_jpeg(seed)) for seed in range(num_images)]
    request = embed_pb2.EmbedImagesRequest(images=images)
    if resolution is not None:
        request.resolution = resolution
    stub.EmbedImages(request, timeout=RPC_LIMIT_S)
    batches, images_run = service.metric("tipserve_batch_images_count"), batch_sum(service)
    cpu_s, wall_s = service.cpu_s(), time.perf_counter()
    num_requests = total_images // num_images
    for _ in range(num_requests):
        stub.EmbedImages(request, timeout=RPC_LIMIT_S)
    wall_s = time.perf_counter() - wall_s
    cpu_s = service.cpu_s() - cpu_s
    batches = service.metric("tipserve_batch_images_count") - batches
    sent = num_requests * num_images
    return Row(
        num_images=num_images,
        batch_images=(batch_sum(service) - images_run) / batches,
        cpu_ms=1000 * cpu_s / sent,
        wall_ms=1000 * wall_s / sent,
    )


def batch_sum(service: RunningService) -> float:
    """Number of images run in batches so far."""
    return service.metric("tipserve_batch_images_sum")


def print_table(rows: list[Row]) -> None:
    """Print one line per request size, then the ratio of the claim."""
    print(f"{'images/request':>14} {'images/batch':>13} {'CPU ms/image':>13} {'wall ms/image':>14}")
    for row in rows:
        print(
            f"{row.num_images:14d} {row.batch_images:13.2f} {row.cpu_ms:13.2f} {row.wall_ms:14.2f}"
        )
    best = min(rows[1:], key=lambda row: row.cpu_ms)
    print(
        f"ratio: an image sent alone takes {rows[0].cpu_ms / best.cpu_ms:.2f} times the CPU time "
        f"of one sent among {best.num_images}"
    )


def main() -> None:
    """Measure every request size against one service."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="bundled-student", help="model package: bundled, or a folder"
    )
    parser.add_argument(
        "--resolution", type=int, help="pixels; the model's native size if left out"
    )
    parser.add_argument("--images", type=int, default=256, help="images for each size of request")
    options = parser.parse_args()
    with (
        running_service(f"--model={options.model}") as service,
        grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel,
    ):
        stub = encoder_service_pb2_grpc.EncoderServiceStub(channel)
        rows = [
            measure(
                service,
                stub,
                num_images,
                total_images=options.images,
                resolution=options.resolution,
            )
            for num_images in IMAGES_PER_REQUEST
        ]
    print(
        f"gRPC EmbedImages, cls1, 640x480 JPEG, model {options.model}, "
        f"resolution {options.resolution or 'native'}, {options.images} images a row, one client"
    )
    print_table(rows)


if __name__ == "__main__":
    main()
