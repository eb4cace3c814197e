"""`python -m tipserve_cli`: the same as `tipserve`."""

import sys

from tipserve_cli.program import main

if __name__ == "__main__":
    sys.exit(main())
