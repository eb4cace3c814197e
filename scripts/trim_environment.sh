#!/bin/sh
# Remove from an image's environment what serving never opens. $1 is the environment.
# All that images leave out of installed packages is here; tests/containers/ serve from what remains.
set -eu
environment=$1
site=$(echo "$environment"/lib/python3*/site-packages)

# Where models are converted all of it is used: torch wants sympy, and exports are quantised. Ray too needs what goes below.
if [ -d "$site/torch" ] || [ -d "$site/ray" ]; then
  exit 0
fi

# sympy is for a tool of ONNX Runtime's that infers shapes, the hub for tokenizers that are downloaded,
# and the rest for these two alone.
pip --python "$environment/bin/python" --disable-pip-version-check uninstall --quiet --yes \
  sympy mpmath huggingface-hub hf-xet httpx2 filelock pyyaml tqdm

# ONNX Runtime: its tools, and a second copy of it for programs in C; Python's has everything in itself.
rm -rf "$site/onnxruntime/tools" "$site/onnxruntime/transformers" "$site/onnxruntime/quantization"
rm -f "$site"/onnxruntime/capi/libonnxruntime.so.*

# OpenVINO: all devices but the CPU (with kernels tuned for a GPU), model files but ONNX and its own, what C programs are
# compiled against, and what reports use to its makers.
rm -rf "$site/openvino/include" "$site/openvino/cmake"
if [ -d "$site/openvino/libs" ]; then
  pip --python "$environment/bin/python" --disable-pip-version-check uninstall --quiet --yes openvino-telemetry
  cd "$site/openvino/libs"
  for device in auto auto_batch hetero intel_gpu intel_npu; do
    rm -f "libopenvino_${device}_plugin.so"
  done
  rm -f cache.json libopenvino_c.so.*
  for kind in gguf jax paddle pytorch tensorflow tensorflow_lite; do
    rm -rf libopenvino_${kind}_frontend.so.* "../frontend/$kind"
  done
fi

# Symbols for debuggers. Only libraries that stand alone: those that carry others along have been patched for that, and may
# not survive it.
for library in httptools/parser/parser httptools/parser/url_parser tokenizers/tokenizers uvloop/loop; do
  strip --strip-unneeded "$site/$library".*.so
done

# Pygments: the grammars of languages. Nothing here colours code; the command line's help only imports the package.
if [ -d "$site/pygments/lexers" ]; then
  find "$site/pygments/lexers" -type f ! -name __init__.py ! -name _mapping.py ! -name special.py -delete
fi

# NumPy's tests and its tools for compilers, and the type hints that editors read.
find "$site/numpy" -type d -name tests -prune -exec rm -rf {} +
rm -rf "$site/numpy/distutils" "$site/numpy/f2py"
find "$site" -name '*.pyi' -type f -delete
