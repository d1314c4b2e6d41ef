# SPDX-License-Identifier: Apache-2.0
"""Deformable convolutions against their definition."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from helpers.ops import bilinear, check_half, check_values
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from torch import Tensor


class Case(NamedTuple):
    """The sizes of a convolution of 4 to 2 channels."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    deform_groups: int


CASES = [
    Case((3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
    Case((3, 2), (2, 1), (1, 2), (1, 2), 2, 2),
    Case((2, 3), (1, 2), (0, 1), (2, 1), 1, 4),
]
#: Layers: plain, modulated with and without a bias.
KINDS = ['plain', 'modulated', 'bias']
HEIGHT, WIDTH = 5, 6


def make_layer(kind: str, case: Case) -> Any:
    if kind == 'plain':
        return DeformConv2d(4, 2, *case)
    layer = ModulatedDeformConv2d(4, 2, *case, bias=kind == 'bias')
    if kind == 'bias':
        layer.bias.data.copy_(torch.tensor([0.5, -2.0]))
    return layer


def output_size(case: Case) -> tuple[int, int]:
    """Return the height and width of the output, in cells."""
    image = torch.zeros(1, 1, HEIGHT, WIDTH)
    kernel = torch.zeros(1, 1, *case.kernel)
    output = torch.conv2d(
        image, kernel, None, case.stride, case.padding, case.dilation
    )
    return tuple(output.shape[2:])


def make_inputs(case: Case, kind: str = 'modulated') -> list[Tensor]:
    """Return an input, an offset and, if modulated, a mask for a case."""
    taps = case.deform_groups * case.kernel[0] * case.kernel[1]
    size = output_size(case)
    image = torch.randn(2, 4, HEIGHT, WIDTH)
    offset = 1.5 * torch.randn(2, 2 * taps, *size)
    mask = torch.randn(2, taps, *size).sigmoid()
    return [image, offset] if kind == 'plain' else [image, offset, mask]


def definition(inputs: Sequence[Tensor], layer: Any, case: Case) -> Tensor:
    """Return the sum over channels and taps: ``(B, O, H', W')``."""
    image, offset, *masks = inputs
    weight = layer.weight.detach()
    batch, channels = image.shape[:2]
    outputs, group_channels, *kernel = weight.shape
    output = image.new_zeros(batch, outputs, *output_size(case))
    per_group = outputs // case.groups
    for b, row, column, channel, i, j in torch.cartesian_prod(
        *map(torch.arange, (batch, *output.shape[2:], channels, *kernel))
    ).tolist():
        part = channel // (channels // case.deform_groups)
        group, inner = divmod(channel, group_channels)
        own = slice(group * per_group, (group + 1) * per_group)
        tap = (part * kernel[0] + i) * kernel[1] + j
        place = (
            torch.tensor([row, column]) * torch.tensor(case.stride)
            - torch.tensor(case.padding)
            + torch.tensor([i, j]) * torch.tensor(case.dilation)
            + offset[b, 2 * tap : 2 * tap + 2, row, column]
        )
        value = bilinear(image[b, channel : channel + 1], *place.tolist())
        if masks:
            value = value * masks[0][b, tap, row, column]
        output[b, own, row, column] += weight[own, inner, i, j] * value
    if getattr(layer, 'bias', None) is not None:
        output += layer.bias.detach()[:, None, None]
    return output


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('case', CASES)
def test_values(case: Case, kind: str) -> None:
    layer, inputs = make_layer(kind, case), make_inputs(case, kind)
    expected = definition(inputs, layer, case)

    def convolve(*tensors: Tensor) -> Tensor:
        return layer.to(tensors[0].dtype)(*tensors)

    check_values(convolve, inputs, expected)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('case', CASES)
def test_gradients(case: Case, kind: str) -> None:
    """The gradients in all tensors, against finite differences."""
    layer, inputs = make_layer(kind, case), make_inputs(case, kind)
    parameters = dict(layer.named_parameters())

    def call(*tensors: Tensor) -> Tensor:
        own = dict(zip(parameters, tensors[len(inputs) :], strict=True))
        return torch.func.functional_call(layer, own, tensors[: len(inputs)])

    leaves = [
        tensor.detach().clone().requires_grad_()
        for tensor in (*inputs, *parameters.values())
    ]
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize('kind', KINDS)
def test_contradicting_shapes_raise(kind: str) -> None:
    image, offset, *mask = make_inputs(CASES[1], kind)
    layer = make_layer(kind, CASES[1])
    with pytest.raises(ValueError, match='input channels: expected 4, got 2'):
        layer(image[:, :2], offset, *mask)
    with pytest.raises(ValueError, match='offset channels: expected 24, got'):
        layer(image, offset[:, :-2], *mask)


def test_offsets_of_another_size() -> None:
    """Larger offsets and masks are read from the start of each image.

    That is what the compiled op does and mmdet's DyHead gets; to 1e-12.
    Smaller ones, of which the compiled op reads past the end, raise.
    """
    case = CASES[1]
    image, *others = make_inputs(case)
    layer = make_layer('modulated', case)
    larger = [
        torch.cat([x, x.flip(3)], dim=3).requires_grad_() for x in others
    ]
    read = [
        x.detach().flatten(1)[:, : y[0].numel()].reshape(y.shape)
        for x, y in zip(larger, others, strict=True)
    ]
    expected = definition([image, *read], layer, case)
    output = layer(image, *larger)
    torch.testing.assert_close(output.detach(), expected, rtol=0, atol=1e-12)
    output.square().sum().backward()
    for x, y in zip(larger, others, strict=True):
        grad = x.grad.flatten(1)
        assert grad[:, : y[0].numel()].any()
        assert not grad[:, y[0].numel() :].any()
    with pytest.raises(ValueError, match='at least'):
        layer(image, others[0][..., :-1], others[1])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    inputs = make_inputs(CASES[0])
    layer = make_layer('bias', CASES[0]).to(dtype)
    check_half(lambda *x: layer.to(x[0].dtype)(*x), inputs, dtype)
    # Under autocast the offset's dtype rules, as in mmcv's own wrapper.
    single = [x.float() for x in inputs]
    exact = layer.float()(*single)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(layer(*single), exact)
