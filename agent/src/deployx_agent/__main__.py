"""`python -m deployx_agent`."""

import sys

from deployx_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
