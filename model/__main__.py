"""`python -m model`: see `model.conversion.commands`."""

import sys

from model.conversion.commands import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
