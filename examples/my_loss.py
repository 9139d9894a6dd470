"""A loss of your own: called as loss(student, teacher, mask=mask), gives a scalar."""

from torch import Tensor, nn


class AttentionTransfer(nn.Module):
    """Squared distance of the two maps of activity (mean of |x|^power over channels), each of length 1.

    Channel counts may differ, map sizes are equal: the term resizes the larger map before the call.
    """

    def __init__(self, *, power: float = 2.0) -> None:
        super().__init__()
        if power <= 0:
            raise ValueError(
                f"power is {power}; it must be above 0"
            )  # becomes: distill.TERM: power is ...
        self.power = power

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """student (N, C, h, w), teacher (N, C', h, w), mask (N, h, w) bool, True where a pixel counts."""
        difference = self.activity(student, mask) - self.activity(teacher.detach(), mask)
        return difference.square().sum(dim=1).mean()

    def activity(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = (
            x.float().abs().pow(self.power).mean(dim=1)
        )  # (N, h, w); float: sums overflow in half precision
        if mask is not None:
            x = x.masked_fill(~mask, 0.0)
        return nn.functional.normalize(x.flatten(1), dim=1)  # (N, h·w)
