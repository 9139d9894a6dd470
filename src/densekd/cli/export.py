"""``densekd export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from densekd.cli.arguments import Model, parse, recipe_for_model, split_overrides


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def export(
        model: Model,
        /,
        out: Path,
        size: tuple[int, int] | None = None,
        end: Annotated[
            Literal["argmax", "metres", "none"] | None, tyro.conf.arg(name="with")
        ] = None,
        recipe: str | None = None,
        best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        trusted: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    ) -> int:
        """Write a network as ONNX (.onnx) or as a torch.export program (.pt2), for any batch and size of images.

        The graph takes RGB images in [0, 1] and holds the normalisation; class names and a description of the input
        stand in the file's metadata. The file is run at three shapes and must equal PyTorch within 1e-3, or none is
        left behind. ONNX needs the extra: pip install 'densekd[export]'.

        Args:
            model: folder of a run, or a weights file.
            out: the file, FILE.onnx or FILE.pt2; must not exist.
            size: height and width of the images it is traced and checked with, rounded to multiples of 32.
            end: what the graph ends with: the class of each pixel, metres, or the network's own maps; by default the
                first that the task has.
            recipe: recipe of the network, for weights files that do not say which one they are of (.pth).
            best: of a run, the weights that scored best.
            trusted: allow a file to name a network outside of densekd, whose code is then run.
            as_json: print what was done as JSON.
        """
        config = recipe_for_model(recipe, overrides)
        from densekd.workflows import export as workflow
        from densekd.workflows.open_model import open_model

        workflow.check_target(out)
        loaded = open_model(Path(model), config, best=best, trusted=trusted)
        result = workflow.export(loaded, out, size=size, end=end)
        print(json.dumps(result) if as_json else workflow.as_text(result))
        return 0

    return parse(export, "export", own)
