"""`python -m hfstack.cli` is the `hfstack` command."""

import sys

from hfstack.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
