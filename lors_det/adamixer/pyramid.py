# SPDX-License-Identifier: Apache-2.0
"""A feature pyramid as one table, read by all stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lors_det.adamixer.geometry import at_least_float32


class Pyramid(NamedTuple):
    """A feature pyramid in the order in which points read it.

    Args:
        cells: (B, T, C), the cells of all levels row by row, each with its
            channels next to each other; at least float32.
        heights: (levels) cells.
        widths: (levels) cells.
        starts: (levels) index of a level's first cell.
        strides: (levels) in pixels.
        reads: What carries the gradients of all reads back to the cells;
            None where autograd does, or none are wanted.
    """

    cells: Tensor
    heights: Tensor
    widths: Tensor
    starts: Tensor
    strides: Tensor
    reads: Reads | None

    @classmethod
    def build(cls, feats: Sequence[Tensor], strides: Sequence[int]) -> Pyramid:
        """Lay out the levels.

        Args:
            feats: One (B, C, H_l, W_l) per level.
            strides: Stride of every level in pixels.

        Raises:
            ValueError: If the number of levels differs from that of the
                strides.
        """
        if len(feats) != len(strides):
            raise ValueError(
                f'decoder.strides={list(strides)}: the neck gives '
                f'{len(feats)} levels, expected one stride for each'
            )
        cells = torch.cat([feat.flatten(2).mT for feat in feats], dim=1)
        cells = at_least_float32(cells)
        heights = [feat.shape[2] for feat in feats]
        widths = [feat.shape[3] for feat in feats]
        sizes = [h * w for h, w in zip(heights, widths, strict=True)]
        starts = [sum(sizes[:level]) for level in range(len(sizes))]
        # Filled on the device: copying from the host would wait for it, and
        # cannot be recorded in a CUDA graph.
        numbers = [
            torch.stack([cells.new_full((), n, dtype=torch.long) for n in row])
            for row in (heights, widths, starts, strides)
        ]
        # A compiler has to see what is computed.
        plain = torch.compiler.is_compiling() or not cells.requires_grad
        reads = None if plain else Reads(cells)
        return cls._make((cells, *numbers, reads))

    def read(self, index: Tensor, weights: Tensor, width: int) -> Tensor:
        """Sum cells by weights.

        Args:
            index: (n, m) rows of ``cells`` seen as (-1, width).
            weights: (n, m) of each.
            width: Number of channels that are read together.

        Returns:
            (n, width).
        """
        if self.reads is None:
            return weighted_sums(self.cells, index, weights, width)
        sums = weighted_sums(self.cells.detach(), index, weights, width)
        return self.reads.record(sums, index, weights)


def weighted_sums(
    cells: Tensor, index: Tensor, weights: Tensor, width: int
) -> Tensor:
    """See `Pyramid.read`; the gradient is as large as the cells."""
    return F.embedding_bag(
        index, cells.view(-1, width), per_sample_weights=weights, mode='sum'
    )


class Reads:
    """The reads of one table, whose gradient is built once for all of them.

    Autograd by itself would fill a gradient as large as the table for every
    read, and add them up. Most of it is zeros: a stage reads a small part of
    a pyramid.

    Args:
        cells: The table; requires a gradient.
    """

    def __init__(self, cells: Tensor) -> None:
        self.notes = _Notes()
        # An edge from every read to the table, for autograd to wait for all.
        # The graph knows the notes, not this object, which knows the graph.
        apply: Callable[..., Tensor] = _ToTable.apply
        self.edge = apply(cells, self.notes)

    def record(self, sums: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Give what was read its gradient to the table.

        Args:
            sums: (n, width), read without one.
            index: (n, m), see `Pyramid.read`.
            weights: (n, m), the same.

        Returns:
            The sums.
        """
        apply: Callable[..., Tensor] = _FromRead.apply
        return apply(sums, self.edge, self.notes, index, weights.detach())


class _Notes:
    """What a backward pass has found out about the reads of a table."""

    def __init__(self) -> None:
        self.task = -1
        self.found: list[tuple[Tensor, ...]] = []

    def add(self, *note: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task != self.task:  # the rest is of a pass that left out the table
            self.task, self.found = task, []
        self.found.append(note)

    def take(self) -> list[tuple[Tensor, ...]]:
        found, self.found = self.found, []
        return found


class _ToTable(torch.autograd.Function):
    """From the table to the reads, and back from all of them at once."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, notes: _Notes) -> Tensor:
        ctx.save_for_backward(cells)
        ctx.notes = notes
        return cells.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        index, weights, grad = map(
            torch.cat, zip(*ctx.notes.take(), strict=True)
        )
        with torch.enable_grad():
            cells = ctx.saved_tensors[0].detach().requires_grad_()
            sums = weighted_sums(cells, index, weights, grad.shape[-1])
        return torch.autograd.grad(sums, cells, grad)[0], None


class _FromRead(torch.autograd.Function):
    """What was read, and a note of its gradient on the way back."""

    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        edge: Tensor,
        notes: _Notes,
        index: Tensor,
        weights: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(index, weights)
        ctx.notes = notes
        return sums.view_as(sums)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        ctx.notes.add(*ctx.saved_tensors, grad)
        return grad, grad.new_empty(0), None, None, None
