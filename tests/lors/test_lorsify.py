# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.factories import encoder, randomise
from mmcv.cnn.bricks.transformer import MultiheadAttention
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lors_det.lors import MODES, fold, lorsify

FULL = {'mode': 'lors', 'rank': 8}
SMALL = {'mode': 'lors', 'rank': 2}


class Layer(nn.Module):
    """Everything that can be stacked: (B, 9, 8) -> (B, 9, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
        # mmcv's default here is a dict that other models write into.
        self.wrapped = MultiheadAttention(
            8, 2, dropout_layer=None, batch_first=True
        )
        self.fc = nn.Linear(8, 8)
        self.conv1 = nn.Conv2d(8, 8, 1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x, x, x)[0]
        y = x.transpose(0, 1)
        y = self.cross(y, y[..., :6], y[..., :4], need_weights=False)[0]
        x = self.wrapped(x + y.transpose(0, 1)) + self.fc(x)
        image = x.mT.unflatten(-1, (3, 3))
        image = self.conv3(self.conv1(image).relu())
        return self.norm(x + image.flatten(2).mT)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return x


WEIGHTS = {
    'attn': ['attn-in_proj_weight', 'attn-out_proj-weight'],
    'cross': [f'cross-{k}_proj_weight' for k in 'qkv']
    + ['cross-out_proj-weight'],
    'wrapped.attn': [
        'wrapped-attn-in_proj_weight', 'wrapped-attn-out_proj-weight',
    ],
    'fc': ['fc-weight'],
    'conv?': ['conv1-weight', 'conv3-weight'],
}  # fmt: skip


def dense() -> Model:
    model = Model()
    randomise(model)
    return model


def stacks(**config: Any) -> dict[str, dict[str, Any]]:
    return {'layers': dict.fromkeys(WEIGHTS, config)}


def small(init: str = 'weights') -> Model:
    return lorsify(dense(), stacks(**SMALL), init)


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 9, 5)


@pytest.mark.parametrize('key', WEIGHTS)
@pytest.mark.parametrize('training', [True, False])
def test_dense_stacks_change_nothing(key: str, training: bool) -> None:
    """Also without gradients, where attention takes its fast path."""
    model = dense().train(training)
    new = lorsify(copy.deepcopy(model), {'layers': {key: {'mode': 'dense'}}})
    found = {
        name.split('.')[1]
        for name in new.state_dict()
        if name.startswith('layers_stacks.')
    }
    assert found == set(WEIGHTS[key])
    x = images()
    torch.testing.assert_close(new(x), model(x), rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(new(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize('training', [True, False])
def test_fast_paths_of_torch_read_the_stack(training: bool) -> None:
    model = encoder().train(training)
    full = {'self_attn': FULL, 'linear?': FULL}
    new = lorsify(copy.deepcopy(model), {'layers': full})
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(new(x), model(x), rtol=0, atol=1e-5)
        new.layers_stacks['self_attn-in_proj_weight'].shared.zero_()
        assert (new(x) - model(x)).abs().max() > 0.01


@pytest.mark.parametrize('mode', MODES)
def test_every_parameter_has_one_name_and_a_gradient(mode: str) -> None:
    model = lorsify(dense(), stacks(mode=mode, rank=2))
    names = dict(model.named_parameters(remove_duplicate=False))
    assert len(set(map(id, names.values()))) == len(names)
    pointers = [p.data_ptr() for p in model.state_dict().values()]
    assert len(set(pointers)) == len(pointers)
    model(images()).square().sum().backward()
    lacking = [name for name, p in names.items() if p.grad is None]
    assert lacking == []


def test_stacks_can_be_added_later() -> None:
    config = {'mode': 'lors', 'rank': 2, 'num_param_groups': [1, 2, 3]}
    model = lorsify(dense(), {'layers': {'fc': config}})
    lorsify(model, {'layers': {'conv3': SMALL}})
    fc, conv3 = model.layers_stacks.values()
    assert [len(a) for a in fc.private_A.values()] == [2, 4, 6]
    # Kernels k x k are matrices (out, in / groups * k * k).
    assert conv3.in_features == 36


def test_a_copy_is_independent_and_consistent() -> None:
    model = small()
    copies = copy.deepcopy(model), _saved(model, weights_only=False)
    x = images()
    expected = model(x)
    for other in copies:
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
        with torch.no_grad():
            for p in other.layers_stacks.parameters():
                p.zero_()
        assert not other.layers[1].fc.weight.any()
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
        fold(other)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def _saved(value: Any, **options: Any) -> Any:
    """What is loaded again after it was saved."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, **options)


def test_a_checkpoint_loads_into_a_fresh_model() -> None:
    model, fresh = small(), small('fresh')
    fresh.load_state_dict(_saved(model.state_dict()))
    x = images()
    torch.testing.assert_close(fresh(x), model(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match='the checkpoint is dense: it holds'):
        fresh.load_state_dict(dense().state_dict(), strict=False)


def test_dtype_and_autocast() -> None:
    model = small().eval()
    x = images()
    expected = model(x)
    double = copy.deepcopy(model).double()
    torch.testing.assert_close(
        double(x.double()).float(), expected, rtol=0, atol=1e-5
    )
    with torch.autocast('cpu', torch.bfloat16):
        assert model.layers[0].fc.weight.dtype == torch.float32
        for context in (torch.enable_grad, torch.no_grad):
            with context():
                found = model(x).float()
            torch.testing.assert_close(found, expected, rtol=0, atol=0.2)


def test_checkpointing_and_compiling_give_the_same_gradients() -> None:
    torch._dynamo.reset()
    model = small()
    x = images().requires_grad_()
    compiled = torch.compile(model, backend='eager', fullgraph=True)

    def checkpointed(x: Tensor) -> Tensor:
        x = model.stem(x)
        for layer in model.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x

    results = []
    for run in (model, checkpointed, compiled):
        model.zero_grad()
        run(x).square().sum().backward()
        results.append([p.grad.clone() for p in model.parameters()])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_distributed_data_parallel(tmp_path: Path) -> None:
    """No parameter is unused, and what is trained is the one stack."""
    dist.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    try:
        parallel = DistributedDataParallel(small())
        for _ in range(2):  # the second one complains of unused parameters
            parallel(images()).square().sum().backward()
        assert all(p.grad.any() for p in parallel.parameters())
    finally:
        dist.destroy_process_group()


def test_functional_call_reaches_the_layers() -> None:
    model = small()
    zeros = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    assert not torch.func.functional_call(model, zeros, images()).any()


def test_initial_values() -> None:
    model = dense()
    first = lorsify(copy.deepcopy(model), stacks(**SMALL), 'first')
    for layer in first.layers:
        torch.testing.assert_close(layer.fc.weight, model.layers[0].fc.weight)
    a = first.layers_stacks['fc-weight'].private_A['1']
    assert a.any()  # or the residual would never learn
    full = {'layers': {'fc': {'mode': 'private', 'rank': 8}}}
    private = lorsify(copy.deepcopy(model), full)
    for ours, theirs in zip(private.layers, model.layers, strict=True):
        torch.testing.assert_close(ours.fc.weight, theirs.fc.weight)
    shared = lorsify(copy.deepcopy(model), stacks(mode='shared'))
    mean = sum(layer.fc.weight for layer in model.layers) / 3
    torch.testing.assert_close(shared.layers[2].fc.weight, mean)


def test_equal_layers_can_still_part() -> None:
    """A residual of zero keeps A: with both factors zero none would learn."""
    model = encoder()
    for layer in model.layers:
        layer.linear1 = copy.deepcopy(model.layers[0].linear1)
    lorsify(model, {'layers': {'linear1': SMALL}})
    stack = model.layers_stacks['linear1-weight']
    assert all(a.any() for a in stack.private_A.values())
    assert not any(b.any() for b in stack.private_B.values())
    model(torch.randn(3, 1, 8)).square().sum().backward()
    assert all(b.grad.any() for b in stack.private_B.values())


def test_patterns() -> None:
    two = nn.Module()
    two.encoder, two.decoder = Model(), Model()
    weights = {'attn.in_proj_weight': SMALL, r're:conv\d': SMALL}
    model = lorsify(two, {'*.layers': weights})
    for part in (model.encoder, model.decoder):
        names = ['attn-in_proj_weight', 'conv1-weight', 'conv3-weight']
        assert list(part.layers_stacks) == names


def test_sequential_layers_and_nested_owners() -> None:
    model = nn.Module()
    model.stages = nn.ModuleList(
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)
    )
    lorsify(model, {'stages.*': {'': {'mode': 'lors', 'rank': 1}}})
    assert set(dict(model.named_children())) == {
        'stages', 'stages_0_stacks', 'stages_1_stacks',
    }  # fmt: skip
    assert len(model.stages) == 2


def test_layers_may_differ_in_what_stays() -> None:
    model = dense().requires_grad_(False)
    _unlike(model)
    lorsify(model, {'layers': {'attn': SMALL}})
    assert model.layers[2].fc.weight.shape == (9, 8)
    frozen = model.layers_stacks.parameters()
    assert not any(p.requires_grad for p in frozen)


def _unlike(model: Model) -> None:
    model.layers[2].fc = nn.Linear(8, 9)


def _absent(model: Model) -> None:
    model.layers[1].fc = None


def _tied(model: Model) -> None:
    model.layers[2].fc = model.layers[0].fc


def _stacked(model: Model) -> None:
    lorsify(model, {'layers': {'fc': SMALL}})


FC = {'fc': SMALL}
NO_WEIGHT = "matches no weight of a layer of 'layers'; the nearest are"
TWICE = 'layers.*.fc.weight (8 x 8) is named by two patterns'


@pytest.mark.parametrize(
    ('change', 'stacks', 'message'),
    [
        (None, {'layer': FC}, "ValueError: 'layer' matches no list of layers"),
        (None, {'layers': {'fc1': SMALL}}, f"ValueError: 'fc1' {NO_WEIGHT}"),
        (None, {'layers': {'x.*': SMALL}}, f"ValueError: 'x.*' {NO_WEIGHT}"),
        (None, {'layers': {'re:(': SMALL}}, "ValueError: 're:(' is no patt"),
        (None, {'layers': {'norm': SMALL}}, "TypeError: stacks['layers']: 'n"),
        (_unlike, {'layers': FC}, 'has the shapes [(8, 8), (8, 8), (9, 8)]'),
        (_absent, {'layers': FC}, 'has the shapes [(8, 8), None, (8, 8)]'),
        (_tied, {'layers': FC}, 'ValueError: layers.*.fc.weight: layers have'),
        (_stacked, {'layers': FC}, 'layers.*.fc.weight comes from a stack'),
        (
            None,
            {'layers': {'fc': {'mode': 'lors', 'rank': 9}}},
            'layers.*.fc.weight (8 x 8).rank=9: expected values from 0 to 8',
        ),
        (None, {'layers': {**FC, 'f?': SMALL}}, f'ValueError: {TWICE}'),
        (None, {'layers': FC, 'l*': FC}, f'ValueError: {TWICE}'),
        (None, {'layers': 'fc'}, "TypeError: stacks['layers']='fc': not"),
        (None, 'layers', "TypeError: stacks='layers': expected a dict"),
        (None, {'layers': {'fc': {'ranks': 1}}}, 'a dict with keys out of'),
    ],
)
def test_wrong_settings_change_nothing(
    change: Callable[[Model], None] | None, stacks: Any, message: str
) -> None:
    model = dense()
    if change:
        change(model)
    before = list(model.state_dict())
    with pytest.raises((TypeError, ValueError)) as error:
        lorsify(model, stacks)
    assert message in f'{error.typename}: {error.value}'
    assert list(model.state_dict()) == before


def test_other_wrong_uses() -> None:
    with pytest.raises(ValueError, match="init='zero': expected one of"):
        lorsify(dense(), {}, init='zero')
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(ValueError, match='no module around the list'):
        lorsify(layers, {'': {'': {'mode': 'shared'}}})
    model = small()
    with pytest.raises(ValueError, match='comes from a stack: change'):
        model.layers[0].fc.weight = nn.Parameter(torch.zeros(8, 8))
