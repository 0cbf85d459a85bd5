"""Run the `hfstack` command as `python -m hfstack.cli`."""

import sys

from hfstack.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
