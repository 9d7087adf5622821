"""`python -m hf_plr.cli`: the command `hf-plr`, where its script is not on the path."""

from __future__ import annotations

import sys

from hf_plr.cli import main

if __name__ == "__main__":
    sys.exit(main())
