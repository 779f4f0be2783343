"""Training in several processes, started by ``torchrun``: each computes a part of every batch, and gradients are added.

All processes draw the same batches and take the same steps, so the result does not depend on their number, up to the
rounding of sums. Each reads the same tables and computes all rows; the processes of several machines share the work
folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # boosted trees train without torch
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process, by ``number``, among ``count``. Number 0 writes."""

    number: int = 0
    count: int = 1

    def part(self, rows: Sequence[T]) -> Sequence[T]:
        """The share of this process, every ``count``-th; it may be empty."""
        return rows[self.number :: self.count]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.count > 1:
            import torch
            from torch import distributed

            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            distributed.all_reduce(flat)
            for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(total.view_as(tensor))


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that ``torchrun`` started with this one, connected by gloo; this one alone without ``torchrun``."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    from torch import distributed

    distributed.init_process_group("gloo")
    try:
        yield Processes(number=distributed.get_rank(), count=count)
    finally:
        distributed.destroy_process_group()
