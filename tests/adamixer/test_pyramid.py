# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import weakref
from typing import NamedTuple

import pytest
import torch
from helpers.factories import STRIDES, pyramid
from torch import Tensor

from lors_det.adamixer.pyramid import Pyramid
from lors_det.analysis.timing import peak_bytes

WIDTH = 16


class Reading(NamedTuple):
    index: Tensor
    weights: Tensor
    grad: Tensor

    @classmethod
    def draw(cls, table: Pyramid, bags: int = 9) -> Reading:
        rows = table.cells.numel() // WIDTH
        weights = torch.randn(bags, 5, dtype=table.cells.dtype)
        return cls(
            torch.randint(rows, (bags, 5)),
            weights.requires_grad_(),
            torch.randn(bags, WIDTH, dtype=table.cells.dtype),
        )

    def loss(self, table: Pyramid) -> Tensor:
        sums = table.read(self.index, self.weights, WIDTH)
        return (sums * self.grad).sum()


@pytest.fixture
def feats() -> list[Tensor]:
    torch.manual_seed(0)
    return [feat.double().requires_grad_() for feat in pyramid(2)]


def gradients(loss: Tensor, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, wanted, retain_graph=True)


def test_gradients_of_all_reads_are_those_of_autograd(
    feats: list[Tensor],
) -> None:
    table = Pyramid.build(feats, STRIDES)
    assert table.reads
    plain = table._replace(reads=None)
    readings = [Reading.draw(table) for _ in range(3)]
    wanted = [*feats, *(reading.weights for reading in readings)]
    expected = sum(reading.loss(plain) for reading in readings)
    found = sum(reading.loss(table) for reading in readings)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for _ in range(2):  # the graph can be used again
        torch.testing.assert_close(
            gradients(found, wanted), gradients(expected, wanted)
        )


def test_a_pass_without_the_table_leaves_nothing_behind(
    feats: list[Tensor],
) -> None:
    table = Pyramid.build(feats, STRIDES)
    first, second = Reading.draw(table), Reading.draw(table)
    loss = first.loss(table) + second.loss(table)
    gradients(loss, [first.weights])
    torch.testing.assert_close(
        gradients(second.loss(table), feats),
        gradients(second.loss(table._replace(reads=None)), feats),
    )


def test_reads_without_gradient(feats: list[Tensor]) -> None:
    reading = Reading.draw(Pyramid.build(feats, STRIDES))
    expected = reading.loss(Pyramid.build(feats, STRIDES))
    for table in (
        Pyramid.build([feat.detach() for feat in feats], STRIDES),
        Pyramid.build(feats, STRIDES),
    ):
        with torch.no_grad():
            torch.testing.assert_close(reading.loss(table), expected)
    with torch.no_grad():
        assert Pyramid.build(feats, STRIDES).reads is None


def test_one_gradient_of_the_size_of_the_table(feats: list[Tensor]) -> None:
    """However often it is read."""

    def peak(table: Pyramid) -> int:
        readings = [Reading.draw(table) for _ in range(6)]
        loss = sum(reading.loss(table) for reading in readings)
        return peak_bytes(lambda: gradients(loss, feats))

    table = Pyramid.build(feats, STRIDES)
    size = table.cells.nbytes
    feats_size = sum(feat.nbytes for feat in feats)
    assert peak(table) - feats_size < 1.5 * size
    assert peak(table._replace(reads=None)) - feats_size > 1.5 * size


def test_what_is_not_used_is_freed_at_once(feats: list[Tensor]) -> None:
    table = Pyramid.build(feats, STRIDES)
    loss = Reading.draw(table).loss(table)
    cells = weakref.ref(table.cells)
    del table, loss
    assert cells() is None
