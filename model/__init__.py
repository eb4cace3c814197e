"""The model room: packages, runtimes and NumPy functions; knows neither service nor training."""

import os

# ONNX Runtime's wheels send telemetry unless this is set before the import (`Privacy.md` in the
# wheel, 1.32). Set it to 0 to allow telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
