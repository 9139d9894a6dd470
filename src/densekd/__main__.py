"""``python -m densekd`` and ``torchrun -m densekd``."""

from densekd.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
