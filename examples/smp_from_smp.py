"""Two networks of segmentation-models-pytorch in one line; the student stays the library's own.

python examples/smp_from_smp.py
"""

import sys

import segmentation_models_pytorch as smp
import torch

import densekd

# Yours: data="camvid", root="CAMVID", or {"dataset": "folder", "root": ..., "options": {"classes": [...]}}
DATA = {"dataset": "scenes", "options": {"height": 32, "width": 64}, "train_options": {"length": 8},
        "val_options": {"length": 2}, "crop": [32, 64], "batch_size": 4, "workers": 0}  # fmt: skip


def main(out: str = "runs", steps: int = 3, quiet: bool = False) -> densekd.LoadedModel:
    torch.manual_seed(0)
    # Yours: encoder_weights="imagenet" for the student, trained weights for the teacher.
    student = smp.Unet("tu-test_resnet", encoder_weights=None, classes=9)
    teacher = smp.FPN("tu-test_resnet", encoder_weights=None, classes=9)
    run = densekd.distill(
        student=student,
        teacher=teacher,
        data=DATA,
        terms={
            "pixel_wise": 10,
            # `densekd taps` and `densekd.Taps` say which paths there are; widths may differ.
            "pair_wise": {"weight": 10, "student": "decoder", "teacher": "decoder"},
        },
        steps=steps,
        lr=0.01,
        out=out,
        name="smp_from_smp",
        quiet=quiet,
    )
    # Its keys are the library's: smp.Unet(...).load_state_dict(run.student.model.state_dict())
    print(
        run.scores["miou"],
        run.student.predict(torch.zeros(40, 50, 3, dtype=torch.uint8).numpy()).shape,
    )
    return run.student


if __name__ == "__main__":
    main(*sys.argv[1:2])
