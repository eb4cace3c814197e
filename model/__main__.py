"""`python -m model`: see `model.conversion.commands`."""

import sys

from model.conversion.commands import end_on_signal, run

if __name__ == "__main__":
    end_on_signal()
    sys.exit(run(sys.argv[1:]))
