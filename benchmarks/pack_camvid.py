"""Write a small copy of CamVid to carry to another machine: images as JPEG, labels as they are, lists rewritten.

    python -m benchmarks.pack_camvid CAMVID TARGET [--quality 95]

The reader takes images in any format that Pillow reads, by the names in the lists. JPEG at quality 95 without chroma
subsampling takes about a third of the space; scores from such a copy differ a little from those of the PNG files.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image


def pack(source: Path, target: Path, *, quality: int = 95) -> int:
    """Copy every split that has a list file; returns the number of images."""
    lists = sorted(source.glob("*.txt"))
    if not lists:
        raise SystemExit(f"{source} has no list files (train.txt, val.txt); give CamVid's folder")
    if target.exists():
        raise SystemExit(f"{target} exists; give another folder (nothing was written)")
    count = 0
    for list_file in lists:
        lines = []
        for line in list_file.read_text(encoding="utf-8").splitlines():
            if not line.strip():
                continue
            image, *label = [Path(*Path(word).parts[-2:]) for word in line.split()]
            small = image.with_suffix(".jpg")
            (target / small).parent.mkdir(parents=True, exist_ok=True)
            with Image.open(source / image) as picture:
                picture.convert("RGB").save(target / small, quality=quality, subsampling=0)
            for path in label:
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / path, target / path)
            lines.append(" ".join(path.as_posix() for path in [small, *label]))
            count += 1
        (target / list_file.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return count


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pack_camvid", description=__doc__.split("\n")[0]
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--quality", type=int, default=95)
    args = parser.parse_args(arguments)
    count = pack(args.source, args.target, quality=args.quality)
    size = sum(path.stat().st_size for path in args.target.rglob("*") if path.is_file())
    print(f"{count} images, {size / 2**20:.1f} MiB in {args.target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
