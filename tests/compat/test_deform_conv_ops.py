# SPDX-License-Identifier: Apache-2.0
"""Deformable convolutions against their definition."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from torch import Tensor

from lors_det.compat.mmcv_ext import StandInExt

Bilinear = Callable[[Tensor, float, float], Tensor]


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
HEIGHT, WIDTH = 5, 6


def output_size(case: Case) -> tuple[int, int]:
    """Return the height and width of the output, in cells."""
    sizes = []
    for axis, extent in enumerate((HEIGHT, WIDTH)):
        reach = case.dilation[axis] * (case.kernel[axis] - 1)
        room = extent + 2 * case.padding[axis] - reach - 1
        sizes.append(room // case.stride[axis] + 1)
    return sizes[0], sizes[1]


def make_inputs(
    case: Case, generator: torch.Generator, batch: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Return an input, an offset and a mask for a case, in float64."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    taps = case.deform_groups * case.kernel[0] * case.kernel[1]
    size = output_size(case)
    image = randn(batch, 4, HEIGHT, WIDTH)
    offset = 1.5 * randn(batch, 2 * taps, *size)
    return image, offset, randn(batch, taps, *size).sigmoid()


def definition(
    image: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    case: Case,
    bilinear: Bilinear,
) -> Tensor:
    """Return the sum over channels and taps: ``(B, O, H', W')``."""
    batch, channels = image.shape[:2]
    outputs, group_channels, kernel_h, kernel_w = weight.shape
    taps = kernel_h * kernel_w
    output = image.new_zeros(batch, outputs, *output_size(case))
    per_deform_group = channels // case.deform_groups
    per_group = outputs // case.groups
    for b, _, row, column in torch.cartesian_prod(
        *(torch.arange(n) for n in (batch, 1, *output.shape[2:]))
    ).tolist():
        for channel in range(channels):
            part = channel // per_deform_group
            group, inner = divmod(channel, group_channels)
            own = slice(group * per_group, (group + 1) * per_group)
            for i in range(kernel_h):
                for j in range(kernel_w):
                    tap = part * taps + i * kernel_w + j
                    shift = offset[b, 2 * tap : 2 * tap + 2, row, column]
                    y = (
                        row * case.stride[0]
                        - case.padding[0]
                        + i * case.dilation[0]
                        + shift[0].item()
                    )
                    x = (
                        column * case.stride[1]
                        - case.padding[1]
                        + j * case.dilation[1]
                        + shift[1].item()
                    )
                    value = bilinear(image[b, channel : channel + 1], y, x)
                    if mask is not None:
                        value = value * mask[b, tap, row, column]
                    output[b, own, row, column] += (
                        weight[own, inner, i, j] * value
                    )
    return output


@pytest.mark.parametrize('case', CASES)
def test_deform_conv(
    case: Case, bilinear: Bilinear, rng: torch.Generator
) -> None:
    """Values in float64 to 1e-12, in float32 to 1e-4."""
    layer = DeformConv2d(4, 2, *case).double()
    image, offset, _ = make_inputs(case, rng)
    weight = layer.weight.detach()
    expected = definition(image, offset, None, weight, case, bilinear)
    torch.testing.assert_close(
        layer(image, offset).detach(), expected, rtol=0, atol=1e-12
    )
    single = layer.float()(image.float(), offset.float()).detach()
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('case', CASES)
def test_modulated_deform_conv(
    case: Case, bias: bool, bilinear: Bilinear, rng: torch.Generator
) -> None:
    """Values in float64 to 1e-12, in float32 to 1e-4."""
    layer = ModulatedDeformConv2d(4, 2, *case, bias=bias).double()
    inputs = make_inputs(case, rng)
    expected = definition(*inputs, layer.weight.detach(), case, bilinear)
    if bias:
        layer.bias.data.copy_(layer.bias.new_tensor([0.5, -2.0]))
        expected += layer.bias.detach()[:, None, None]
    torch.testing.assert_close(
        layer(*inputs).detach(), expected, rtol=0, atol=1e-12
    )
    single = layer.float()(*(x.float() for x in inputs)).detach()
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-4)


def gradcheck(layer: Any, inputs: tuple[Tensor, ...]) -> bool:
    """Check the gradients in the inputs and the parameters of a layer."""
    parameters = dict(layer.named_parameters())

    def call(*tensors: Tensor) -> Tensor:
        own = dict(zip(parameters, tensors[len(inputs) :], strict=True))
        return torch.func.functional_call(
            layer, own, tensors[: len(inputs)], strict=True
        )

    leaves = [
        tensor.detach().clone().requires_grad_()
        for tensor in (*inputs, *parameters.values())
    ]
    return torch.autograd.gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize('case', CASES)
def test_deform_conv_gradients(case: Case, rng: torch.Generator) -> None:
    """The gradients in all tensors, against finite differences."""
    layer = DeformConv2d(4, 2, *case).double()
    assert gradcheck(layer, make_inputs(case, rng)[:2])


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('case', CASES)
def test_modulated_gradients(
    case: Case, bias: bool, rng: torch.Generator
) -> None:
    """The gradients in all tensors, against finite differences."""
    layer = ModulatedDeformConv2d(4, 2, *case, bias=bias).double()
    assert gradcheck(layer, make_inputs(case, rng))


def sizes(case: Case) -> dict[str, int]:
    """Return the keyword arguments of ``deform_conv_*`` for a case."""
    return {
        'kW': case.kernel[1],
        'kH': case.kernel[0],
        'dW': case.stride[1],
        'dH': case.stride[0],
        'padW': case.padding[1],
        'padH': case.padding[0],
        'dilationW': case.dilation[1],
        'dilationH': case.dilation[0],
        'group': case.groups,
        'deformable_group': case.deform_groups,
        'im2col_step': 1,
    }


def test_buffers_of_deform_conv(ext: StandInExt, rng: torch.Generator) -> None:
    """Which buffers are added to, which overwritten, and the scale."""
    case = CASES[1]
    image, offset, _ = make_inputs(case, rng)
    weight = torch.randn(2, 2, 3, 2, generator=rng, dtype=torch.float64)
    grads: dict[float, list[Tensor]] = {}
    empty = image.new_empty(0)
    for start in (0.0, 5.0):
        output = image.new_full((2, 2, *output_size(case)), start)
        ext.deform_conv_forward(
            image, weight, offset, output, empty, empty, **sizes(case)
        )
        buffers = [torch.full_like(x, start) for x in (image, offset, weight)]
        ext.deform_conv_backward_input(
            image, offset, output, *buffers[:2], weight, empty, **sizes(case)
        )
        ext.deform_conv_backward_parameters(
            image,
            offset,
            output,
            buffers[2],
            empty,
            empty,
            scale=0.5 if start else 1,
            **sizes(case),
        )
        grads[start] = [output, *buffers]
    zero, five = grads[0.0], grads[5.0]
    assert torch.equal(five[0], zero[0])
    torch.testing.assert_close(five[1], zero[1] + 5)
    torch.testing.assert_close(five[2], zero[2])
    torch.testing.assert_close(five[3], zero[3] * 0.5 + 5)


def test_buffers_of_modulated(ext: StandInExt, rng: torch.Generator) -> None:
    """Which buffers are added to, and which overwritten."""
    case = CASES[1]
    image, offset, mask = make_inputs(case, rng)
    weight = torch.randn(2, 2, 3, 2, generator=rng, dtype=torch.float64)
    bias = weight.new_tensor([0.5, -2.0])
    empty = image.new_empty(0)
    names = ('kernel', 'stride', 'pad', 'dilation')
    geometry = {
        f'{name}_{axis}': size[index]
        for name, size in zip(names, case, strict=False)
        for index, axis in enumerate('hw')
    }
    geometry['group'] = case.groups
    geometry['deformable_group'] = case.deform_groups
    geometry['with_bias'] = True
    grads = []
    for start in (0.0, 5.0):
        output = image.new_full((2, 2, *output_size(case)), start)
        inputs = (image, weight, bias, empty, offset, mask)
        ext.modulated_deform_conv_forward(*inputs, output, empty, **geometry)
        buffers = [
            torch.full_like(x, start)
            for x in (image, weight, bias, offset, mask)
        ]
        ext.modulated_deform_conv_backward(
            *inputs, empty, *buffers, output, **geometry
        )
        grads.append([output, *buffers])
    added = (0, 5, 5, 5, 0, 0)
    for zero, five, more in zip(*grads, added, strict=True):
        torch.testing.assert_close(five, zero + more)


def test_contradicting_sizes_are_told(
    ext: StandInExt, rng: torch.Generator
) -> None:
    """Groups that contradict the tensors' shapes raise."""
    case = CASES[1]
    image, offset, _ = make_inputs(case, rng)
    weight = image.new_zeros(2, 2, 3, 2)
    for wrong in ({'group': 1}, {'deformable_group': 1}, {'kW': 3}):
        with pytest.raises(ValueError, match='expected'):
            ext.deform_conv_forward(
                image,
                weight,
                offset,
                image,
                image,
                image,
                **{**sizes(case), **wrong},
            )


def test_offsets_of_another_size(
    bilinear: Bilinear, rng: torch.Generator
) -> None:
    """Larger offsets and masks are read from the start of each image.

    That is what the compiled op does and mmdet's DyHead gets; to 1e-12.
    Smaller ones, of which the compiled op reads past the end, raise.
    """
    case = CASES[1]
    image, offset, mask = make_inputs(case, rng)
    layer = ModulatedDeformConv2d(4, 2, *case, bias=False).double()
    larger = [
        torch.cat([x, x.flip(3)], dim=3).requires_grad_()
        for x in (offset, mask)
    ]
    read = [
        x.detach().flatten(1)[:, : y[0].numel()].reshape(y.shape)
        for x, y in zip(larger, (offset, mask), strict=True)
    ]
    weight = layer.weight.detach()
    expected = definition(image, *read, weight, case, bilinear)
    output = layer(image, *larger)
    torch.testing.assert_close(output.detach(), expected, rtol=0, atol=1e-12)
    output.square().sum().backward()
    for x, y in zip(larger, (offset, mask), strict=True):
        assert x.grad is not None
        grad = x.grad.flatten(1)
        assert grad[:, : y[0].numel()].any()
        assert not grad[:, y[0].numel() :].any()
    with pytest.raises(ValueError, match='at least'):
        layer(image, offset[..., :-1], mask)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, rng: torch.Generator) -> None:
    """Half precision is computed in float32 and rounded once."""
    inputs = [x.to(dtype).float() for x in make_inputs(CASES[0], rng)]
    layer = ModulatedDeformConv2d(4, 2, *CASES[0]).to(dtype)
    half = [x.to(dtype).requires_grad_() for x in inputs]
    output = layer(*half)
    output.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == dtype for x in half)
    exact = layer.float()(*inputs)
    assert torch.equal(output, exact.to(dtype))
    # Under autocast the offset's dtype rules, as in mmcv's own wrapper.
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(layer(*inputs), exact)
