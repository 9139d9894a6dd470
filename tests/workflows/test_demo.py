"""The demo from nothing to table and pictures, with almost no scenes and steps."""

import pytest
from PIL import Image

from densekd.errors import UserError
from densekd.workflows.demo import demo

ROWS = {
    "segmentation": (
        "teacher (fpn_timm)",
        "student alone",
        "+Pi ",
        "+Pi +Pa ",
        "+Pi +Pa +Ho",
        "student alone, all labels",
    ),
    "detection": ("teacher (fcos_timm)", "student alone", "+Pi ", "+Pi +Pa ", "+Pi +Pa +Mimic"),
    "depth": ("teacher (depth_timm)", "student alone", "+Pi ", "+Pi +Pa ", "+Pi +Pa +Ho"),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", ROWS)
def test_the_demo_ends_with_table_and_pictures_and_goes_on_where_it_was(task, tmp_path, capsys):
    folder = tmp_path / "demo"
    assert demo(folder, overrides={}, task=task, device="cpu", scale=0.01) == 0
    table = (folder / "table.md").read_text()
    for row in ("constant guess", *ROWS[task]):
        assert f"| {row}" in table
    picture = Image.open(folder / "images" / "comparison.png")
    assert picture.width > 5 * 256
    assert "minutes" in capsys.readouterr().out

    weights = folder / "teacher" / "checkpoints" / "student.safetensors"
    before = weights.stat().st_mtime_ns
    assert demo(folder, overrides={}, task=task, device="cpu", scale=0.01) == 0
    assert weights.stat().st_mtime_ns == before
    assert (folder / "table.md").read_text() == table


def test_a_folder_that_is_no_demos_is_left_alone(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="no demo's folder"):
        demo(tmp_path / "demo", overrides={}, device="cpu")
    assert [p.name for p in (tmp_path / "demo").iterdir()] == ["mine.txt"]
