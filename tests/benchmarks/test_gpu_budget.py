"""The counted budget of an image on a GPU: bytes by output, and the resource that binds."""

from benchmarks.on_gpu.budget import binding, images_per_s, input_bytes, output_bytes


def test_the_bytes_of_an_image_follow_the_requested_outputs() -> None:
    assert input_bytes(448) == 2_408_448
    assert [output_bytes(448, n) for n in range(3)] == [6_144, 3_151_872, 6_297_600]


def test_the_slowest_resource_binds() -> None:
    rates = images_per_s(448, 0, copies_s=0.0005, cpu_s=0.0046)
    assert round(rates["GPU, bf16"]) == 1750
    assert (binding(rates, "fp32"), binding(rates, "bf16")) == ("GPU, fp32", "GPU, bf16")
    assert binding(images_per_s(224, 2, copies_s=0.0005, cpu_s=0.0046), "bf16") == "one process"
    assert binding(images_per_s(448, 2, copies_s=0.002, cpu_s=0.0046), "bf16") == "2 lanes' copies"
