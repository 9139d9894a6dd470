"""``python -m densekd`` and ``torchrun -m densekd``."""

import os
import sys

# Python puts the working folder before everything installed: a file there called timm.py would be run in timm's place.
# What a recipe names by a dotted path is looked up there all the same, after the rest (densekd.build.resolve).
if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from densekd.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
