"""The accelerators that costs are named for: peak speed and memory, as their makers state them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator.

    Attributes:
        name: As `--device` takes it.
        title: As a table prints it.
        peak_flops: Dense bfloat16 operations a second at best; a multiply-add is two.
        memory_bytes: The data sheet's gigabytes, read as 1e9 bytes, which is the lower reading.
        source: Where the numbers are from.
    """

    name: str
    title: str
    peak_flops: float
    memory_bytes: float
    source: str


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device(
            name="a100",
            title="A100 80GB",
            peak_flops=312e12,
            memory_bytes=80e9,
            source="NVIDIA A100 data sheet: 312 TFLOP/s bf16 without sparsity, 80 GB",
        ),
        Device(
            name="h100",
            title="H100 80GB",
            peak_flops=989e12,
            memory_bytes=80e9,
            source="NVIDIA H100 SXM data sheet: 1979 TFLOP/s bf16 with sparsity, half without; "
            "80 GB",
        ),
        Device(
            name="h200",
            title="H200",
            peak_flops=989e12,
            memory_bytes=141e9,
            source="NVIDIA H200 SXM data sheet: 1979 TFLOP/s bf16 with sparsity, half without; "
            "141 GB",
        ),
        # The two chips that the paper's "TPUv5" may mean; torch here runs on neither.
        Device(
            name="tpu-v5e",
            title="TPU v5e",
            peak_flops=197e12,
            memory_bytes=16e9,
            source="Google Cloud TPU documentation: 197 TFLOP/s bf16, 16 GB a chip",
        ),
        Device(
            name="tpu-v5p",
            title="TPU v5p",
            peak_flops=459e12,
            memory_bytes=95e9,
            source="Google Cloud TPU documentation: 459 TFLOP/s bf16, 95 GB a chip",
        ),
    )
}


def device(name: str) -> Device:
    """Look up a device.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in DEVICES:
        raise ValueError(f"no device {name!r}: choose one of {', '.join(DEVICES)}")
    return DEVICES[name]
