"""``densekd export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from densekd.cli.arguments import Model, parse, recipe_for_model, split_overrides
from densekd.errors import UserError


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def export(
        model: Model,
        /,
        out: Path | None = None,
        format: Literal["onnx", "pt2", "openvino", "tflite", "coreml"] | None = None,
        size: tuple[int, int] | None = None,
        end: Annotated[
            Literal["argmax", "metres", "boxes", "detections", "none"] | None,
            tyro.conf.arg(name="with"),
        ] = None,
        int8: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        calib: str | None = None,
        calib_images: int = 32,
        score_images: int | None = None,
        recipe: str | None = None,
        best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        trusted: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    ) -> int:
        """Write a network as ONNX (.onnx), for OpenVINO (.xml and .bin) or as a torch.export program (.pt2), for any
        batch and size of images.

        The graph takes RGB images in [0, 1] and holds the normalisation; class names and a description of the input
        stand in the file's metadata. The file is run at three shapes and must equal PyTorch within 1e-3, or none is
        left behind. ONNX needs the extra: pip install 'densekd[export]'; OpenVINO: 'densekd[export,openvino]'.
        The file is a MODEL of evaluate (--weights), predict, compare and latency too.

        TensorFlow Lite (.tflite; 'densekd[tflite]') and Core ML (.mlpackage; 'densekd[coreml]') are of one size
        (--size) and one image a call. TensorFlow Lite is for segmentation and depth. What a Core ML package answers is
        checked on a Mac alone, and no other command takes it.

        --int8 quantises weights and activations of convolutions and products, calibrated on training images, and prints
        what the score loses on validation images.

        Args:
            model: folder of a run, a weights file, FILE@RECIPE, or an id on the Hugging Face hub (owner/name).
            out: the file, FILE.onnx, FILE.xml, FILE.pt2, FILE.tflite or FILE.mlpackage; must not exist. By default the
                model's name.
            format: where --out is not given.
            size: height and width of the images it is traced and checked with, rounded to multiples of 32.
            end: what the graph ends with: the class of each pixel, metres, boxes before NMS, detections (boxes after
                NMS, with the task's own thresholds), or the network's own maps; by default the first that the task has.
            int8: static quantisation, for ONNX and OpenVINO.
            calib: root of the recipe's data set (its training images are taken, its validation images scored), or any
                folder of images; by default the recipe's own root.
            calib_images: how many images are looked at.
            score_images: how many validation images are scored; by default all.
            recipe: recipe of the network, for weights files that do not say which one they are of (.pth).
            best: of a run, the weights that scored best.
            trusted: allow a file to name a network outside of densekd, or to hold a program of its own (.pt2), whose
                code is then run.
            as_json: print what was done as JSON.
        """
        config = recipe_for_model(recipe, overrides)
        from densekd.workflows import export as workflow
        from densekd.workflows.int8 import int8_data
        from densekd.workflows.open_model import open_model, split_name

        wrong = [
            n for n, v in (("--calib", calib), ("--score-images", score_images)) if v is not None
        ]
        if wrong and not int8:
            raise UserError(f"{wrong[0]}: is of --int8; add it, or leave this out")
        if min(calib_images, score_images or 1) < 1:
            raise UserError("--calib-images and --score-images must be at least 1")
        file = workflow.target(model, out, format, int8=int8)
        loaded = open_model(model, config, best=best, trusted=trusted)
        data = None
        if int8:
            data = int8_data(
                loaded, config or split_name(model)[1], calib, calib_images, score_images
            )
        result = workflow.export(loaded, file, size=size, end=end, int8=data)
        print(json.dumps(result) if as_json else workflow.as_text(result))
        return 0

    return parse(export, "export", own)
