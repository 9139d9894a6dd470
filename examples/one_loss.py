"""One loss of densekd in a loop of yours: it takes two tensors and gives a scalar."""

import torch
from torch import nn

from densekd.losses import pixel_wise

teacher = nn.Conv2d(3, 19, 3, padding=1).eval()  # yours: images -> logits (N, C, h, w)
student = nn.Conv2d(3, 19, 1)
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
images = torch.rand(2, 3, 32, 64)

for _ in range(5):
    with torch.no_grad():
        target = teacher(images)
    loss = 10 * pixel_wise(student(images), target, temperature=1.0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"pixel_wise {loss.item():.4f}")
