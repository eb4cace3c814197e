"""ONNX Runtime is given no more of the processors than it was told to take."""

from typing import Any

from model.package import ModelPackage
from model.runtime.load import load_runtime


def test_idle_threads_sleep_and_are_as_many_as_asked_for(tiny_package: ModelPackage) -> None:
    runtime: Any = load_runtime(tiny_package, runtime="onnx", num_threads=3)
    for graph in runtime._graphs.values():
        options = graph._session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert options.intra_op_num_threads == 3
        assert options.inter_op_num_threads == 1
    runtime.close()
