"""`python -m service.commands`: the same as `tipserve`."""

import sys

from service.commands.program import main

if __name__ == "__main__":
    sys.exit(main())
