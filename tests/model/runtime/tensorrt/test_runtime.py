"""The TensorRT runtime on stand-ins of its libraries."""

import gc
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model.graphs import PatchOutput
from model.package import PackageError
from model.runtime.base import Interrupted, Runtime, VisionOutput
from model.runtime.tensorrt.engines import ENGINES
from model.runtime.tensorrt.graph_executor import GraphExecutor
from tests.model.runtime.tensorrt.conftest import assert_near, images, texts

if TYPE_CHECKING:
    from tests.model.runtime.tensorrt.conftest import MakeGpu, StandInGpu


@pytest.mark.parametrize("uses_graphs", [True, False])
def test_it_computes_what_the_onnx_runtime_does(
    make_gpu: "MakeGpu", reference: Runtime, uses_graphs: bool
) -> None:
    lane = make_gpu(use_cuda_graphs=uses_graphs).lane()
    for batch, height, width in [(1, 56, 56), (3, 56, 56), (2, 28, 84), (9, 56, 56), (1, 14, 14)]:
        pixels_B3HW = images(batch, height, width)
        for _ in range(3):
            assert_near(lane.encode_images(pixels_B3HW), reference.encode_images(pixels_B3HW))
    for batch, length in [(1, 1), (13, 16), (2, 64)]:
        ids_BL, mask_BL = texts(batch, length)
        np.testing.assert_allclose(
            lane.encode_texts(ids_BL, mask_BL),
            reference.encode_texts(ids_BL, mask_BL),
            rtol=0,
            atol=1e-6,
        )


@pytest.mark.parametrize("uses_graphs", [True, False])
def test_only_requested_outputs_are_copied_from_the_gpu(
    make_gpu: "MakeGpu", reference: Runtime, uses_graphs: bool
) -> None:
    gpu = make_gpu(use_cuda_graphs=uses_graphs)
    lane, pixels_B3HW = gpu.lane(), images(2)
    expected = reference.encode_images(pixels_B3HW)
    cls_bytes, rows_bytes = 2 * expected.cls1_BD.nbytes, expected.patches_BND.nbytes
    wanted: list[tuple[PatchOutput, ...]] = [
        (),
        ("patches",),
        ("values",),
        ("patches", "values"),
        (),
    ]
    for names in wanted:  # of one shape, so most of them use a recorded graph
        gpu.cuda.returned_bytes = 0
        output = lane.encode_images(pixels_B3HW, (), names)
        assert gpu.cuda.returned_bytes == cls_bytes + len(names) * rows_bytes, names
        np.testing.assert_allclose(output.cls1_BD, expected.cls1_BD, atol=1e-6)
        for name, found, all_rows in (
            ("patches", output.patches_BND, expected.patches_BND),
            ("values", output.values_BND, expected.values_BND),
        ):
            rows_BND = all_rows if name in names else all_rows[:, :0]
            np.testing.assert_allclose(found, rows_BND, atol=1e-6)
            assert found.shape == rows_BND.shape


def test_an_output_outlives_the_next_run_and_arrays_need_not_be_contiguous(
    gpu: "StandInGpu", reference: Runtime
) -> None:
    lane, flipped_B3HW = gpu.lane(), images(2)[:, :, ::-1, ::-1]
    first, second = lane.encode_images(images(2)), lane.encode_images(flipped_B3HW)
    assert_near(first, reference.encode_images(images(2)))
    assert_near(second, reference.encode_images(np.ascontiguousarray(flipped_B3HW)))


def test_tensors_of_fewer_bits_are_converted(gpu: "StandInGpu", reference: Runtime) -> None:
    kinds = gpu.trt.DataType
    gpu.trt.types = {
        "pixel_values": kinds.BF16,
        "cls1": kinds.BF16,
        "patch_embeddings": kinds.HALF,
        "input_ids": kinds.INT32,
    }
    lane = gpu.lane()
    pixels_B3HW = np.round(images(2) * 128) / np.float32(128)  # exact in bfloat16
    expected = reference.encode_images(pixels_B3HW)
    output = lane.encode_images(pixels_B3HW)
    np.testing.assert_allclose(output.cls1_BD, expected.cls1_BD, rtol=2**-7)
    np.testing.assert_allclose(output.patches_BND, expected.patches_BND, rtol=2**-10, atol=1e-7)
    np.testing.assert_allclose(output.values_BND, expected.values_BND, rtol=0, atol=1e-6)
    ids_BL, mask_BL = texts(2, 5)
    expected_BD = reference.encode_texts(ids_BL, mask_BL)
    np.testing.assert_allclose(lane.encode_texts(ids_BL, mask_BL), expected_BD, atol=1e-6)


def test_a_shape_is_recorded_after_its_first_run_and_replayed(gpu: "StandInGpu") -> None:
    lane = gpu.lane()
    gpu.trt.called.clear()
    for _ in range(5):
        lane.encode_images(images(2))
    assert gpu.trt.called.count("execute_async_v3") == 2  # once to run and once to record
    assert gpu.cuda.called.count("cudaGraphLaunch") == 4
    assert gpu.cuda.called.count("cudaGraphInstantiate") == 1


def test_growing_memory_voids_what_was_recorded(gpu: "StandInGpu", reference: Runtime) -> None:
    lane = gpu.lane()
    for pixels_B3HW in (images(1), images(1), images(4), images(1), images(1)):
        assert_near(lane.encode_images(pixels_B3HW), reference.encode_images(pixels_B3HW))
    assert gpu.cuda.called.count("cudaGraphInstantiate") == 2
    assert gpu.cuda.called.count("cudaGraphExecDestroy") == 1


def test_only_the_latest_shapes_stay_prepared(make_gpu: "MakeGpu") -> None:
    gpu = make_gpu(max_shapes=2)
    lane = gpu.lane()
    for width in (14, 28, 42, 56):
        for _ in range(2):
            lane.encode_images(images(1, 14, width))
    assert len(gpu.trt.contexts) == 2
    assert len(gpu.cuda.executables) <= 2


def test_a_graph_that_cannot_be_recorded_is_run_step_by_step(
    gpu: "StandInGpu", reference: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    lane = gpu.lane()
    lane.encode_images(images(2))
    names = gpu.cuda.called
    # The next three calls are those of a run: device, begin of the recording, copy.
    gpu.cuda.failing = {len(names) + 2: gpu.cuda.cudaError_t.cudaErrorStreamCaptureUnsupported}
    for _ in range(3):
        assert_near(lane.encode_images(images(2)), reference.encode_images(images(2)))
    assert "CUDA graphs are off for this lane" in caplog.text
    assert "cudaGraphLaunch" not in names


def test_lanes_share_an_engine_and_nothing_else(gpu: "StandInGpu", reference: Runtime) -> None:
    lanes = [gpu.lane() for _ in range(3)]
    assert len(gpu.trt.engines) == 2
    assert gpu.trt.num_built == 2
    outputs: list[VisionOutput] = []

    def run(index: int) -> None:
        for batch in (1, 4, 2, 4):
            output = lanes[index].encode_images(images(batch))
        outputs.append(output)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) == 3
    for output in outputs:
        assert_near(output, reference.encode_images(images(4)))
    lanes[0].close()
    assert len(gpu.trt.engines) == 2
    assert_near(lanes[1].encode_images(images(1)), reference.encode_images(images(1)))


def test_nothing_is_left_after_closing(gpu: "StandInGpu") -> None:
    gc.collect()  # exceptions of other tests hold frames with their engines
    lane = gpu.lane()
    for batch in (1, 1, 3, 3, 1):
        lane.encode_images(images(batch))
    lane.encode_texts(*texts(2, 5))
    assert gpu.cuda.num_alive > 5
    lane.close()
    lane.close()
    assert gpu.cuda.num_alive == 0
    assert not gpu.trt.contexts
    assert not gpu.trt.engines
    assert len(ENGINES) == 0
    with pytest.raises(RuntimeError, match="this runtime is closed"):
        lane.encode_images(images(1))


@pytest.mark.parametrize("after_runs", [0, 1, 2])
def test_an_interrupted_call_skips_its_remaining_runs(
    gpu: "StandInGpu", reference: Runtime, monkeypatch: pytest.MonkeyPatch, after_runs: int
) -> None:
    lane = gpu.lane()
    runs: list[str] = []
    submit = GraphExecutor._submit

    def note(self: GraphExecutor, shape: Any) -> None:
        runs.append("run")
        submit(self, shape)
        if len(runs) == after_runs:
            lane.interrupt()

    monkeypatch.setattr(GraphExecutor, "_submit", note)
    if after_runs:
        with pytest.raises(Interrupted):
            lane.encode_images(images(12))
        assert len(runs) == after_runs
    else:
        lane.interrupt()  # nothing runs
    pixels_B3HW = images(12)
    assert_near(lane.encode_images(pixels_B3HW), reference.encode_images(pixels_B3HW))


def test_wrong_inputs_and_absent_precisions_are_errors(gpu: "StandInGpu") -> None:
    with pytest.raises(PackageError, match="vision_model_bf16"):
        gpu.lane("bf16")
    with pytest.raises(ValueError, match="fp32, bf16, fp16, int8, not in int8_weights"):
        gpu.lane("int8_weights")
    assert gpu.cuda.num_alive == 0
    lane = gpu.lane()
    with pytest.raises(ValueError, match="multiples of 14"):
        lane.encode_images(images(1, 15, 14))
    with pytest.raises(ValueError, match="not built for inputs of"):
        lane.encode_images(images(1, 14, 14 * 17))
    with pytest.raises(ValueError, match="no head for depth"):
        lane.estimate("depth", images(1))
    with pytest.raises(ValueError, match="no token"):
        lane.encode_texts(np.zeros((1, 2), np.int64), np.zeros((1, 2), np.int64))
