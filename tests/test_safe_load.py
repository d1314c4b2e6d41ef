# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
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
    """Calls a function when it is unpickled; a file may do anything."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def saved_legacy(content: Any) -> bytes:
    return saved(content, _use_new_zipfile_serialization=False)


def pickled_2(content: Any) -> bytes:
    return pickle.dumps(content, protocol=2)


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a test installs."""
    monkeypatch.setattr(
        checkpoint, 'get_torch_safe_globals', list, raising=False
    )
    before = dict(CheckpointLoader._schemes)
    install()
    yield
    for prefix, loader in before.items():
        CheckpointLoader.register_scheme(prefix, loader, force=True)


@pytest.fixture
def trap(tmp_path: Path) -> tuple[Path, Code]:
    """A file that runs code, and the folder that shows that it has run."""
    folder = tmp_path / 'trap'
    return folder, Code(os.mkdir, str(folder))


@pytest.mark.parametrize(
    'save', [saved, saved_legacy, pickled_2, pickle.dumps]
)
@pytest.mark.parametrize(
    ('function', 'name'),
    [(os.mkdir, r'posix\.mkdir|nt\.mkdir'), (Path, r'pathlib\.[\w.]*Path')],
)
def test_code_is_refused_and_not_run(
    tmp_path: Path,
    save: Callable[[Any], bytes],
    function: Callable[..., Any],
    name: str,
) -> None:
    trap, file = tmp_path / 'trap', tmp_path / 'model.pth'
    code = Code(function, str(trap))
    file.write_bytes(save({'state_dict': {}, 'x': code}))
    message = (
        rf'model.pth wants to run code while it is loaded \(({name})\) and '
        'was refused; if you trust where it comes from, add --trust'
    )
    if save is pickle.dumps:  # of a protocol that torch never writes
        message = 'model.pth is no checkpoint, or cut off'
    with pytest.raises(UsageError, match=message) as caught:
        load_checkpoint(file)
    assert '\n' not in str(caught.value)
    assert not trap.exists()
    if save in (saved, saved_legacy):
        load_checkpoint(file, trust=True)
        assert trap.exists() == (function is os.mkdir)


@pytest.mark.parametrize(
    'content',
    [
        Code(getattr, HistoryBuffer, '__init__'),
        Code(getattr, torch.Tensor, 'tolist'),
    ],
)
def test_getattr_reaches_nothing(tmp_path: Path, content: Any) -> None:
    file = tmp_path / 'model.pth'
    file.write_bytes(saved({'x': content}))
    with pytest.raises(UsageError, match=r'\(builtins.getattr\)'):
        load_checkpoint(file)


@pytest.mark.parametrize('numpy', [b'numpy._core.', b'numpy.core.'])
def test_what_mmengine_and_mmcv_store(tmp_path: Path, numpy: bytes) -> None:
    content = {
        'meta': {'CLASSES': ('a', 'b'), 'epoch': 3, 'cfg': 'x = 1'},
        'state_dict': {'a': torch.ones(2)},
        'message_hub': {'log_scalars': {'a': HistoryBuffer([1.0, 2], [1, 1])}},
        'info': {'eta': np.float64(2.5), 'n': np.int64(4)},
        'array': np.arange(3, dtype=np.float32),
    }
    file = tmp_path / 'model.pth'
    file.write_bytes(saved_legacy(content).replace(b'numpy._core.', numpy))
    found = load_checkpoint(file)
    assert found['meta'] == content['meta']
    assert found['message_hub']['log_scalars']['a'].mean() == 1.5
    assert found['info'] == content['info']
    assert found['array'].tolist() == [0, 1, 2]


HTML = b'<html>404 Not Found</html>\n' * 40
TENSORS = {'state_dict': {'a': torch.ones(1000)}}


@pytest.mark.parametrize(
    ('content', 'name', 'message'),
    [
        (None, 'a.pth', 'checkpoint: .*a.pth does not exist'),
        (b'', 'a.pth', 'checkpoint: .*a.pth is empty'),
        (b'', 'a.safetensors', 'is empty'),
        (saved(TENSORS)[:2000], 'a.pth', 'a.pth is damaged or cut off: its e'),
        (saved_legacy(TENSORS)[:2000], 'a.pth', 'is no checkpoint, or cut of'),
        (HTML, 'a.pth', 'a.pth is no checkpoint, or cut off'),
        (HTML, 'a.safetensors', 'is no checkpoint, or cut off'),
        (saved(TENSORS), 'a.safetensors', 'is no checkpoint, or cut off'),
        (saved([torch.ones(2)]), 'a.pth', 'holds a list, expected a checkpoi'),
    ],
)
@pytest.mark.parametrize('trust', [False, True])
def test_wrong_files(
    tmp_path: Path, content: bytes | None, name: str, message: str, trust: bool
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        load_checkpoint(tmp_path / name, trust=trust)
    assert '\n' not in str(caught.value)


@pytest.mark.usefixtures('_installed')
@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_saved_and_loaded(tmp_path: Path, name: str) -> None:
    layer, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    meta = {'dataset_meta': {'classes': ['x', 'y']}}
    path = tmp_path / 'new' / name
    save_checkpoint(layer.state_dict(), meta, path)
    assert load_checkpoint(path)['meta'] == meta
    install()  # again, as by two runners of one process
    mmengine_load(other, str(path), strict=True)
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(other.bias, layer.bias)
    assert [path.name for path in path.parent.iterdir()] == [name]


@pytest.mark.usefixtures('_installed')
@pytest.mark.parametrize(
    'name',
    ['', 'https://host.test/a.pth', 'torchvision://resnet50', 'mmcls://vgg11'],
)
def test_mmengine_refuses_code(
    tmp_path: Path,
    trap: tuple[Path, Code],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From files, and from where torch keeps what it has downloaded."""
    file = tmp_path / 'model.pth'
    file.write_bytes(saved({'state_dict': {'x': trap[1]}}))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(
        'torch.hub.download_url_to_file',
        lambda url, target, *_, **__: Path(target).write_bytes(
            file.read_bytes()
        ),
    )
    with pytest.raises(UsageError, match='wants to run code'):
        CheckpointLoader.load_checkpoint(name or str(file))
    assert not trap[0].exists()
    assert os.environ.get(FORCE_KEY, '0') == '0'
    install(trust=True)
    CheckpointLoader.load_checkpoint(name or str(file))
    assert trap[0].exists()


@pytest.mark.usefixtures('_installed')
def test_a_config_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    """mmengine's runner executes ``meta.config`` as Python to resume."""
    file = tmp_path / 'model.pth'
    meta = {'config': 'raise SystemExit', 'epoch': 1}
    file.write_bytes(saved({'meta': meta}))
    found = CheckpointLoader.load_checkpoint(str(file))
    assert found['meta'] == {'epoch': 1}
