# SPDX-License-Identifier: Apache-2.0
"""The kernels run in Triton's interpreter and compile without a GPU."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from factories import decoder, positions, pyramid, randomise
from torch import Tensor

from lors_det.adamixer import fused
from lors_det.adamixer.mixing import RECOMPUTE

triton = pytest.importorskip('triton')
tl = triton.language

KERNELS = Path(fused.__file__).with_name('fused_kernels.py')
LORS, DENSE, SMALL = (64, 128, 128), (32, 64, 128), (16, 32, 64)


def load_kernels() -> ModuleType:
    """A copy of their own: the way they run is settled at import."""
    spec = importlib.util.spec_from_file_location('_fused_kernels', KERNELS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import interpreter

    monkeypatch.setenv('TRITON_INTERPRET', '1')
    kernels = load_kernels()
    monkeypatch.setattr(fused, '_kernels', lambda: kernels)
    # Triton may be here already, and then has a sum to be compiled.
    monkeypatch.setattr(
        tl, 'sum', lambda x: tl.reduce(x, None, tl.standard._sum_combine)
    )
    # It would multiply the bit patterns of bfloat16.
    builder = interpreter.InterpreterBuilder
    dot = builder.create_dot

    def widened(self: object, a: object, b: object, *rest: object) -> object:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (self.cast_impl(x, tl.float32) for x in (a, b))
        return dot(self, a, b, *rest)

    monkeypatch.setattr(builder, 'create_dot', widened)


def inputs(
    sizes: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
    leading: tuple[int, ...] = (1, 1, 2),
) -> list[Tensor]:
    points, width, out_points = sizes
    shapes = (points, width), (width, width), (out_points, points)
    return [
        torch.randn(*leading, *shape).to(dtype).requires_grad_()
        for shape in shapes
    ]


def plain(sampled: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
    x = sampled @ channel
    x = F.layer_norm(x, x.shape[-2:]).relu()
    x = spatial @ x
    return F.layer_norm(x, x.shape[-2:]).relu()


def errors(tensors: list[Tensor], mixing: object) -> list[float]:
    """Relative, of the result and the gradients, against float64."""
    exact = [x.detach().double().requires_grad_() for x in tensors]
    out, expected = mixing(*tensors), plain(*exact)
    weight = torch.randn_like(out)
    got = [out, *torch.autograd.grad(out, tensors, weight)]
    want = [expected, *torch.autograd.grad(expected, exact, weight.double())]
    return [
        ((a - b).norm() / b.norm()).item()
        for a, b in zip(got, want, strict=True)
    ]


@pytest.mark.usefixtures('interpreted')
@pytest.mark.parametrize('sizes', [LORS, DENSE, SMALL, (16, 16, 16)])
def test_is_the_plain_mixing(sizes: tuple[int, int, int]) -> None:
    leading = (2, 3, 2) if sizes == SMALL else (1, 1, 2)
    tensors = inputs(sizes, leading=leading)
    assert max(errors(tensors, fused.fused_mixing)) < 2e-6


@pytest.mark.usefixtures('interpreted')
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('sizes', [LORS, DENSE])
def test_sixteen_bits_are_as_good_as_in_the_plain_path(
    sizes: tuple[int, int, int], dtype: torch.dtype
) -> None:
    tensors = inputs(sizes, dtype)
    # The operator itself: bfloat16 is refused in the interpreter.
    found = errors(tensors, torch.ops.lors_det.fused_mixing)
    assert max(found) < 1.5 * max(errors(tensors, plain))


@pytest.mark.usefixtures('interpreted')
@pytest.mark.parametrize('recompute', RECOMPUTE)
def test_in_the_decoder(recompute: str) -> None:
    sizes = {'in_points': 16, 'out_points': 16}
    model = decoder(**sizes)
    fused_model = decoder(**sizes, fused_mixing=True, recompute=recompute)
    randomise(model)
    fused_model.load_state_dict(model.state_dict())
    inputs = pyramid(1), torch.randn(1, 2, 32), positions(1, 2)
    outputs = []
    for each in (model, fused_model):
        last = each(*inputs)[-1]
        (last.cls_logits.sum() + last.xyzr.sum()).backward()
        grads = [p.grad for p in each.parameters()]
        outputs.append([last.cls_logits, last.xyzr, *grads])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-3, atol=1e-3)


def test_in_the_decoder_without_a_gpu() -> None:
    model = decoder(in_points=16, out_points=16, fused_mixing=True)
    with pytest.raises(ValueError, match='cpu is not a CUDA device'):
        model(pyramid(1), torch.randn(1, 2, 32), positions(1, 2))
    with pytest.raises(TypeError, match="fused_mixing='yes': expected True"):
        decoder(fused_mixing='yes')


@pytest.mark.usefixtures('interpreted')
def test_statistics_do_not_cancel() -> None:
    # Channel means far above the spread, tiles of rows far from each other.
    sampled, channel, spatial = inputs(SMALL)
    with torch.no_grad():
        spatial += 100 + torch.arange(64.0)[:, None]
    found = errors([sampled, channel, spatial], fused.fused_mixing)
    assert max(found) < 1e-4


@pytest.mark.usefixtures('interpreted')
def test_zeros_stay_zeros() -> None:
    tensors = inputs(SMALL)
    for zero in range(3):
        now = list(tensors)
        now[zero] = torch.zeros_like(now[zero], requires_grad=True)
        out = fused.fused_mixing(*now)
        assert not out.any()
        for grad in torch.autograd.grad(out.sum(), now):
            assert not grad.any()


@pytest.mark.usefixtures('interpreted')
def test_tensors_in_any_order_and_none() -> None:
    tensors = inputs(SMALL, leading=(2, 1, 3))
    turned = [x.transpose(0, 2).contiguous().transpose(0, 2) for x in tensors]
    out = fused.fused_mixing(*tensors)
    assert torch.equal(fused.fused_mixing(*turned), out)
    none = [x[:0] for x in tensors]
    assert fused.fused_mixing(*none).shape == (0, 1, 3, 64, 32)


@pytest.mark.usefixtures('interpreted')
def test_only_the_inputs_are_saved() -> None:
    tensors, saved = inputs(SMALL), []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        fused.fused_mixing(*tensors)
    assert [x.data_ptr() for x in saved] == [x.data_ptr() for x in tensors]


@pytest.mark.usefixtures('interpreted')
def test_autocast_sets_the_type() -> None:
    tensors = inputs(SMALL)
    with torch.autocast('cpu', torch.float16):
        out = fused.fused_mixing(*tensors)
    assert out.dtype == torch.float16
    grads = torch.autograd.grad(out.sum(), tensors)
    assert {x.dtype for x in grads} == {torch.float32}
    torch.testing.assert_close(out.float(), plain(*tensors), rtol=0, atol=2e-2)


@pytest.mark.usefixtures('interpreted')
def test_compiles_as_one_graph() -> None:
    mixing = torch.compile(
        fused.fused_mixing, fullgraph=True, dynamic=True, backend='aot_eager'
    )
    for leading in ((2, 3, 2), (3, 2, 4)):
        tensors = inputs(SMALL, leading=leading)
        assert max(errors(tensors, mixing)) < 2e-6


@pytest.mark.usefixtures('interpreted')
def test_operators_keep_their_promises() -> None:
    tensors = inputs(SMALL, leading=(1, 1, 1))
    detached = [x.detach() for x in tensors]
    grad = torch.randn(1, 1, 1, 64, 32)
    checks = ('test_schema', 'test_autograd_registration', 'test_faketensor')
    ops = torch.ops.lors_det
    for op, args in (
        (ops.fused_mixing.default, tensors),
        (ops.fused_mixing_backward.default, [grad, *detached]),
    ):
        torch.library.opcheck(op, tuple(args), test_utils=checks)


@pytest.mark.usefixtures('interpreted')
@pytest.mark.parametrize(
    ('sizes', 'change', 'reason'),
    [
        (SMALL, lambda x, m, s: (x, m[..., :16], s), 'do not fit'),
        (SMALL, lambda x, m, s: (x, m, s[:, :, :1]), 'do not fit'),
        ((12, 32, 64), None, 'size 12 is not a power of two'),
        ((16, 8, 64), None, 'size 8 is not'),
        ((16, 16, 48), None, 'size 48 is not'),
        ((128, 256, 64), None, '128 points of 256 channels'),
        (SMALL, lambda x, m, s: (x.half(), m, s), 'float16 features'),
        (SMALL, lambda *xs: [x.double() for x in xs], 'float64 is not'),
        (SMALL, lambda *xs: [x.bfloat16() for x in xs], 'interpreter'),
        (SMALL, None, None),
    ],
)
def test_says_why_not(
    sizes: tuple[int, int, int], change: object, reason: str | None
) -> None:
    tensors = inputs(sizes)
    tensors = change(*tensors) if change else tensors
    found = fused.why_not_fused(*tensors)
    if reason is None:
        assert found is None
    else:
        assert reason in found
        with pytest.raises(ValueError, match=re.escape(reason)):
            fused.fused_mixing(*tensors)


def test_needs_a_device_and_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 'cpu is not a CUDA device' in fused.why_not_fused(*inputs(SMALL))
    meta = [x.to('meta') for x in inputs(SMALL)]
    assert 'meta is not a CUDA device' in fused.why_not_fused(*meta)

    monkeypatch.setattr(fused, '_why_not_device', lambda device: None)
    monkeypatch.setattr(fused, '_on_chip_limit', lambda device: 99 * 1024)
    assert fused.why_not_fused(*inputs(LORS, torch.bfloat16)) is None
    assert 'shared memory' in fused.why_not_fused(*inputs(LORS))


def test_imports_without_triton() -> None:
    code = (
        'import runpy, sys, torch\n'
        'sys.modules["triton"] = None\n'
        f'names = runpy.run_path({fused.__file__!r})\n'
        'x = torch.zeros(1, 1, 1, 16, 16)\n'
        'print(names["why_not_fused"](x, x, x))\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert result.stdout == 'triton is not installed\n', result.stderr


def compiled(
    name: str, sizes: tuple[int, int, int], dtype: torch.dtype, arch: int
) -> tuple[int, int, int]:
    """Bytes of shared memory; registers and bytes of stack of a thread."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(load_kernels(), name)
    constants, options = getattr(fused, f'{name}_options')(*sizes, dtype)
    pointer = {torch.bfloat16: '*bf16', torch.float32: '*fp32'}[dtype]
    source = ASTSource(
        kernel,
        {x: pointer if x[-4:] == '_ptr' else 'constexpr'
         for x in kernel.arg_names},
        {(kernel.arg_names.index(x),): constants[x] for x in constants},
        {(i,): [['tt.divisibility', 16]]
         for i, x in enumerate(kernel.arg_names) if x[-4:] == '_ptr'},
    )  # fmt: skip
    binary = triton.compile(source, GPUTarget('cuda', arch, 32), options)
    tool = Path(triton.backends.nvidia.__file__).with_name('bin')
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(binary.asm['cubin'])
        file.flush()
        usage = subprocess.run(
            [tool / 'cuobjdump', '--dump-resource-usage', file.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    registers, stack = re.search(r'REG:(\d+) STACK:(\d+)', usage).groups()
    return binary.metadata.shared, int(registers), int(stack)


@pytest.mark.parametrize(
    ('name', 'sizes', 'dtype', 'arch', 'spilled'),
    [
        ('forward', LORS, torch.bfloat16, 90, 0),
        ('backward', LORS, torch.bfloat16, 90, 0),
        ('forward', DENSE, torch.bfloat16, 90, 0),
        ('backward', DENSE, torch.bfloat16, 90, 0),
        ('forward', LORS, torch.bfloat16, 80, 0),
        ('backward', LORS, torch.bfloat16, 80, 128),
    ],
)
def test_two_programs_fit_on_a_multiprocessor(
    name: str,
    sizes: tuple[int, int, int],
    dtype: torch.dtype,
    arch: int,
    spilled: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    shared, registers, stack = compiled(name, sizes, dtype, arch)
    assert shared <= fused.on_chip_bytes(*sizes, dtype.itemsize) <= 81 * 1024
    assert registers <= fused.REGISTERS
    assert stack <= spilled


def test_float32_fits_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        found = compiled('backward', LORS, torch.float32, 90)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    shared, _, stack = found
    assert shared <= fused.on_chip_bytes(*LORS, 4) <= 163 * 1024
    assert stack == 0
