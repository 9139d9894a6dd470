"""The Trainer of Hugging Face with a SegFormer student: the losses are functions, so `compute_loss` is all there is.

python examples/loop_hf_trainer.py
"""

import tempfile

import torch
from small_scenes import small_scenes
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Trainer,
    TrainingArguments,
)

from densekd import Taps, models
from densekd.losses import pair_wise, pixel_wise
from densekd.ops.resize import resize_map
from densekd.types import InputSpec

SPEC = InputSpec()  # ImageNet's mean and std, as SegFormer's image processor has them


class DistillationTrainer(Trainer):
    def __init__(self, *args: object, teacher: Taps, **options: object) -> None:
        super().__init__(*args, **options)
        self.teacher = teacher.eval().requires_grad_(False).to(self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        images = inputs["pixel_values"]  # RGB in [0, 1]; `Taps` normalises for the teacher
        with torch.no_grad():
            teacher = self.teacher(images)
        output = model(
            pixel_values=SPEC.normalize(images), labels=inputs["labels"], output_hidden_states=True
        )
        size = output.logits.shape[-2:]
        pixel = pixel_wise(output.logits, resize_map(teacher.prediction, size))
        feature = output.hidden_states[1]  # stride 8, as the teacher's
        pair = pair_wise(feature, resize_map(teacher.features["b3"], feature.shape[-2:]))
        loss = output.loss + 10 * pixel + 10 * pair
        return (loss, output) if return_outputs else loss


def main(folder: str | None = None, steps: int = 2) -> DistillationTrainer:
    torch.manual_seed(0)
    data, task = small_scenes()
    k = len(task.classes)
    # Yours: SegformerForSemanticSegmentation.from_pretrained("nvidia/mit-b0", num_labels=k)
    small = {"hidden_sizes": [8, 16, 16, 16], "decoder_hidden_size": 16, "depths": [1, 1, 1, 1]}
    student = SegformerForSemanticSegmentation(SegformerConfig(num_labels=k, **small))
    teacher = Taps(models.espnet(k, p=1, q=1), {"b3": "b3"})  # random here: load trained weights
    trainer = DistillationTrainer(
        student,
        TrainingArguments(folder or tempfile.mkdtemp(), max_steps=steps, logging_steps=1,
                          per_device_train_batch_size=4, remove_unused_columns=False, report_to="none"),
        train_dataset=[{"pixel_values": image, "labels": label} for image, label in data],
        teacher=teacher,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()  # a folder of transformers: from_pretrained, or densekd's {name: hf, path: FOLDER}
    return trainer


if __name__ == "__main__":
    main()
