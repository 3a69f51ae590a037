"""`python -m deployx`."""

import sys

from deployx.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
