"""Data sets of Hugging Face's `datasets`, from a local folder: as ``save_to_disk`` writes them, or parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from densekd.data.files import read_list, require_folder, unknown_name
from densekd.data.items import ItemOptions, Items
from densekd.errors import DataError, UserError


class HFDataset(Items):
    """One split of a data set of the library `datasets` (``pip install 'densekd[hf-datasets]'``); nothing is fetched.

    Two layouts of the folder: as ``Dataset.save_to_disk`` and ``DatasetDict.save_to_disk`` write it, or parquet files
    anywhere in it whose names begin with the split's (``data/train-00000-of-00002.parquet``), as hubs have them.
    Images in tables are decoded here, not by the library, by the rules of all images.

    Args:
        root: the folder.
        split: a split of it. A data set without splits has all samples in each; take `data.val_fraction`.
        verify_files: without effect.
        columns: see `Items`: `image` and one of `mask`, `boxes` and `depth` name columns, with dots for what lies
            inside (``objects.bbox``). `classes` may be left out where the table names the classes of `labels`, and
            where ``root/classes.txt`` does.

    Raises:
        DataError: the folder, the split or a column is missing, or files are damaged.
        UserError: options do not fit each other, or the library is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        verify_files: bool = True,
        **columns: Unpack[ItemOptions],
    ) -> None:
        root = require_folder(Path(root), "a folder of save_to_disk, or of parquet files")
        table = _undecoded(_table(root, split))
        if not columns.get("classes") and not columns.get("depth"):
            columns["classes"] = _class_names(table, root, columns.get("labels", "labels"))
        super().__init__(table, root=root, **columns)

    def sources(self, index: int) -> list[Path]:
        """See `DenseSet`."""
        return [Path(file["filename"]) for file in self.items.cache_files]


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            "this reader needs the library datasets, which is not installed: pip install 'densekd[hf-datasets]'"
        ) from None
    return datasets


def _table(root: Path, split: str) -> Any:
    datasets = _library()
    try:
        if (root / "dataset_dict.json").is_file() or (root / "dataset_info.json").is_file():
            found = datasets.load_from_disk(str(root))
            if isinstance(found, datasets.DatasetDict):
                if split not in found:
                    raise unknown_name("split", split, found, root)
                found = found[split]
            return found
        files = sorted(str(path) for path in root.rglob("*.parquet"))
        chosen = [file for file in files if Path(file).name.startswith(split)]
        if not chosen:
            splits = {Path(file).stem.split("-")[0] for file in files}
            raise unknown_name("split", split, splits, f"the parquet files of {root}")
        return datasets.Dataset.from_parquet(chosen)
    except DataError:
        raise
    # Its own classes and those of the libraries below it, which have no common root.
    except Exception as error:
        raise DataError(f"{root} cannot be read as a data set of `datasets`: {error}") from None


def _undecoded(table: Any) -> Any:
    """With images as bytes and paths: the library would open any format, and files anywhere."""
    datasets = _library()
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _class_names(table: Any, root: Path, labels: str) -> list[str]:
    feature = table.features
    for part in labels.split("."):
        inner = getattr(feature, "feature", feature)
        feature = inner.get(part) if hasattr(inner, "get") else None
    names = getattr(getattr(feature, "feature", feature), "names", None)
    if names is None and (root / "classes.txt").is_file():
        names = [" ".join(words) for words in read_list(root / "classes.txt")]
    return list(names or ())
