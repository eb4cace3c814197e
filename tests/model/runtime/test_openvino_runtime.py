"""One core a process: signals still arrive after runtimes were closed in any order."""

import subprocess
import sys

import pytest

from model.package import ModelPackage
from model.runtime.load import load_runtime
from model.runtime.openvino_runtime import openvino_core

PROGRAM = """
import gc, os, signal, sys
from pathlib import Path
from model.package import open_package
from model.runtime.load import load_runtime

package = open_package(sys.argv[1])
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
first, second = (load_runtime(package, runtime="openvino") for _ in range(2))
for runtime in (first, second):
    runtime.close()
del first, second, runtime
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_signal_arrives_after_runtimes_were_closed_in_the_order_they_came(
    tiny_package: ModelPackage,
) -> None:
    # Where the CPU has AMX, a core for each runtime kills the process here (exit -11).
    command = [sys.executable, "-c", PROGRAM, str(tiny_package.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


def test_all_runtimes_share_one_core(
    tiny_package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = openvino_core()
    compiled: list[object] = []
    compile_model = type(core).compile_model

    def remember(self: object, *arguments: object) -> object:
        compiled.append(self)
        return compile_model(self, *arguments)

    monkeypatch.setattr(type(core), "compile_model", remember)
    for _ in range(2):
        load_runtime(tiny_package, runtime="openvino").close()
    assert len(compiled) == 4
    assert all(one is core for one in compiled)
