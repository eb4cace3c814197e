"""The model room: packages, runtimes and NumPy functions; knows neither service nor training."""

import os

# ONNX Runtime's wheels report to their makers unless they are told so before they are imported
# (`Privacy.md` in the wheel, 1.32). Who wants them to sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
