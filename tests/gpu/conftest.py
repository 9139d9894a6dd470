"""Every test here needs a CUDA device: `pytest -m gpu` on a machine without one skips them, saying so."""

import pytest
import torch


@pytest.fixture(autouse=True)
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; this PyTorch sees none")
    before = torch.get_float32_matmul_precision()
    tf32 = torch.backends.cudnn.allow_tf32
    # Comparisons with the CPU are made in full float32.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield torch.device("cuda", 0)
    torch.set_float32_matmul_precision(before)
    torch.backends.cudnn.allow_tf32 = tf32
