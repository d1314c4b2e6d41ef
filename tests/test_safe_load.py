# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint
from mmengine.runner.checkpoint import load_checkpoint as mmengine_load

from lors_det.errors import UsageError
from lors_det.safe_load import (
    FORCE_KEY,
    install,
    load_checkpoint,
    save_checkpoint,
)


class Code:
    """Makes a folder when it is unpickled; a file may do anything."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def _installed() -> Iterator[None]:
    """Undo what a test installs."""
    before = dict(CheckpointLoader._schemes)
    their_list = checkpoint.get_torch_safe_globals
    yield
    checkpoint.get_torch_safe_globals = their_list
    for prefix, loader in before.items():
        CheckpointLoader.register_scheme(prefix, loader, force=True)


def save_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def save_pickle_2(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize(
    'save', [save_zip, save_legacy, save_pickle, save_pickle_2]
)
@pytest.mark.parametrize(
    ('function', 'name'),
    [(os.mkdir, r'posix\.mkdir|nt\.mkdir'), (Path, r'pathlib\.\w*Path')],
)
def test_code_is_refused_and_not_run(
    tmp_path: Path,
    save: Callable[[Any, Path], None],
    function: Callable[..., Any],
    name: str,
) -> None:
    trap, file = tmp_path / 'trap', tmp_path / 'model.pth'
    content = {'state_dict': {}, 'x': Code(function, str(trap))}
    save(content, file)
    message = (
        rf'model.pth wants to run code while it is loaded \(({name})\) and '
        'was refused; if you trust where it comes from, add --trust'
    )
    if save is save_pickle:  # torch itself never writes its protocol
        message = 'model.pth is no checkpoint, or cut off'
    with pytest.raises(UsageError, match=message) as caught:
        load_checkpoint(file)
    assert '\n' not in str(caught.value)
    assert not trap.exists()


@pytest.mark.parametrize('save', [save_zip, save_legacy])
def test_a_trusted_file_runs(
    tmp_path: Path, save: Callable[[Any, Path], None]
) -> None:
    trap, file = tmp_path / 'trap', tmp_path / 'model.pth'
    save({'x': Code(os.mkdir, str(trap))}, file)
    load_checkpoint(file, trust=True)
    assert trap.exists()


@pytest.mark.parametrize(
    'content',
    [
        Code(getattr, HistoryBuffer, '__init__'),
        Code(getattr, torch.Tensor, 'tolist'),
    ],
)
def test_getattr_reaches_nothing(tmp_path: Path, content: Any) -> None:
    file = tmp_path / 'model.pth'
    torch.save({'x': content}, file)
    with pytest.raises(UsageError, match=r'\(builtins.getattr\)'):
        load_checkpoint(file)


def test_what_mmengine_and_mmcv_store(tmp_path: Path) -> None:
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {
        'meta': {'CLASSES': ('a', 'b'), 'epoch': 3, 'cfg': 'x = 1'},
        'state_dict': {'a': torch.ones(2)},
        'message_hub': {
            'log_scalars': {'loss': history},
            'runtime_info': {'eta': np.float64(2.5), 'n': np.int64(4)},
        },
        'array': np.arange(3, dtype=np.float32),
    }
    file = tmp_path / 'model.pth'
    torch.save(content, file)
    found = load_checkpoint(file)
    assert found['meta'] == content['meta']
    scalars = found['message_hub']['log_scalars']
    assert scalars['loss'].mean() == 1.5
    assert found['message_hub']['runtime_info']['eta'] == 2.5
    assert found['array'].tolist() == [0, 1, 2]


def test_numbers_of_numpy_1(tmp_path: Path) -> None:
    file = tmp_path / 'model.pth'
    save_legacy({'best': np.float64(2.5), 'x': np.arange(2)}, file)
    text = file.read_bytes().replace(b'numpy._core.', b'numpy.core.')
    file.write_bytes(text)
    found = load_checkpoint(file)
    assert found['best'] == 2.5
    assert found['x'].tolist() == [0, 1]


def garbage(path: Path) -> None:
    path.write_bytes(b'<html>404 Not Found</html>\n' * 40)


def truncated(path: Path) -> None:
    torch.save({'state_dict': {'a': torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])


def truncated_legacy(path: Path) -> None:
    save_legacy({'a': torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def empty(path: Path) -> None:
    path.touch()


def missing(path: Path) -> None:
    pass


def other(path: Path) -> None:
    torch.save([torch.ones(2)], path)


@pytest.mark.parametrize(
    ('write', 'name', 'message'),
    [
        (missing, 'a.pth', 'checkpoint: .*a.pth does not exist'),
        (empty, 'a.pth', 'checkpoint: .*a.pth is empty'),
        (empty, 'a.safetensors', 'is empty'),
        (truncated, 'a.pth', 'a.pth is damaged or cut off: its end is m'),
        (truncated_legacy, 'a.pth', 'a.pth is no checkpoint, or cut off'),
        (garbage, 'a.pth', 'a.pth is no checkpoint, or cut off'),
        (garbage, 'a.safetensors', 'is no checkpoint, or cut off'),
        (truncated, 'a.safetensors', 'is damaged or cut off'),
        (other, 'a.pth', 'holds a list, expected a checkpoint'),
    ],
)
@pytest.mark.parametrize('trust', [False, True])
def test_wrong_files(
    tmp_path: Path,
    write: Callable[[Path], None],
    name: str,
    message: str,
    trust: bool,
) -> None:
    write(tmp_path / name)
    with pytest.raises(UsageError, match=message) as caught:
        load_checkpoint(tmp_path / name, trust=trust)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_saved_and_loaded(tmp_path: Path, name: str) -> None:
    state = {'a': torch.randn(3, 2), 'n': torch.tensor(5)}
    meta = {'dataset_meta': {'classes': ['x', 'y']}}
    save_checkpoint(state, meta, tmp_path / 'new' / name)
    found = load_checkpoint(tmp_path / 'new' / name)
    assert found['meta'] == meta
    assert found['state_dict'].keys() == state.keys()
    assert all(torch.equal(found['state_dict'][k], state[k]) for k in state)
    assert [path.name for path in (tmp_path / 'new').iterdir()] == [name]


@pytest.mark.usefixtures('_installed')
@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_mmengine_loads_through_here(tmp_path: Path, name: str) -> None:
    install()
    install()  # as by two runners of one process
    layer = torch.nn.Linear(2, 3)
    save_checkpoint(layer.state_dict(), {}, tmp_path / name)
    other = torch.nn.Linear(2, 3)
    mmengine_load(other, str(tmp_path / name), strict=True)
    assert torch.equal(other.weight, layer.weight)


@pytest.mark.usefixtures('_installed')
def test_mmengine_refuses_code(tmp_path: Path) -> None:
    trap, file = tmp_path / 'trap', tmp_path / 'model.pth'
    torch.save({'x': Code(os.mkdir, str(trap))}, file)
    install()
    with pytest.raises(UsageError, match='wants to run code'):
        CheckpointLoader.load_checkpoint(str(file))
    assert not trap.exists()
    install(trust=True)
    CheckpointLoader.load_checkpoint(str(file))
    assert trap.exists()


@pytest.mark.usefixtures('_installed')
@pytest.mark.parametrize(
    'url', ['https://host.test/{}', 'torchvision://resnet50', 'mmcls://vgg11']
)
def test_mmengine_refuses_code_from_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """With the files where torch keeps what it has downloaded."""
    trap = tmp_path / 'trap'

    def fetched(url: str, target: str, *args: Any, **options: Any) -> None:
        torch.save({'state_dict': {'x': Code(os.mkdir, str(trap))}}, target)

    monkeypatch.setattr('torch.hub.download_url_to_file', fetched)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    install()
    with pytest.raises(UsageError, match='wants to run code'):
        CheckpointLoader.load_checkpoint(url.format('model.pth'))
    assert not trap.exists()
    assert os.environ.get(FORCE_KEY, '0') == '0'


@pytest.mark.usefixtures('_installed')
def test_a_config_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    """mmengine's runner executes ``meta.config`` as Python to resume."""
    file = tmp_path / 'model.pth'
    torch.save({'meta': {'config': 'raise SystemExit', 'epoch': 1}}, file)
    install()
    found = CheckpointLoader.load_checkpoint(str(file))
    assert found['meta'] == {'epoch': 1}
