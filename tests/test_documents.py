# SPDX-License-Identifier: Apache-2.0
"""The documents: their links, their Python, their command lines."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.factories import build
from mmengine.registry import HOOKS

from docs import method
from lors_det.adamixer import decoder
from lors_det.cli.main import COMMANDS
from lors_det.files import load_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text('utf-8')
    for pattern in ('*.md', 'docs/*.md', 'configs/**/*.md', 'demo/**/*.md')
    for path in sorted(ROOT.glob(pattern))
}
BLOCKS = {
    name: re.findall(r'^```python\n(.*?)^```$', text, re.M | re.S)
    for name, text in DOCUMENTS.items()
}
CONFIG = 'configs/bccd/lors-adamixer_mobilenetv2_bccd.py'
#: Blocks that show lines of a source file.
QUOTES = {'docs/method.md': method, 'docs/architecture.md': decoder}
#: What a block has, that is not executed, and why.
NOT_EXECUTED = {
    'work_dirs/demo/': 'needs the run of make demo',
    'replay(model': 'needs the dump of a bad step: tests/hooks has one',
}
#: First words of command lines that are not of this project.
OTHERS = {'docker', 'done', 'for', 'git', 'pip', 'python3.11', 'source'}


@pytest.mark.parametrize('document', DOCUMENTS)
def test_paths_exist(document: str) -> None:
    """Links, and paths inside code, lead somewhere."""
    text = DOCUMENTS[document]
    folder = (ROOT / document).parent
    prose = re.sub(r'`[^`]*`', '', text)  # `dense[i](q)` is no link
    links = re.findall(r'\]\((?!http|#)([^)#]+)', prose)
    links += re.findall(r'<img src="(?!http)([^"]+)"', text)
    for link in links:
        assert (folder / link).exists(), link
    for path in re.findall(
        r'(?<![\w/.-])((?:configs|tools|tests|demo|lors_det|docs)/[\w./-]*\w)',
        text,
    ):
        assert (ROOT / path).exists(), path


def is_quoted(block: str, document: str) -> bool:
    """Whether a block is lines of a file, at any indentation."""
    if document not in QUOTES:
        return False
    source = inspect.getsource(QUOTES[document])
    indented = (textwrap.indent(block, depth * '    ') for depth in range(4))
    return any(f'\n{text}' in source for text in indented)


@pytest.fixture(scope='module')
def checkpoint() -> dict[str, dict[str, torch.Tensor]]:
    """Random weights of `CONFIG`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        model = build(load_config(CONFIG).model)
    return {'state_dict': model.state_dict()}


@pytest.fixture
def files(
    tmp_path: Path,
    checkpoint: dict[str, dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the blocks read, in a folder that they may write to."""
    for name in ('configs', 'demo'):
        (tmp_path / name).symlink_to(ROOT / name)
    image = ROOT / 'demo/bccd/images/BloodImage_00007.jpg'
    (tmp_path / 'image.jpg').symlink_to(image)
    torch.save(checkpoint, tmp_path / 'CHECKPOINT')
    supervision = types.SimpleNamespace(Detections=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, 'supervision', supervision)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures('files')
@pytest.mark.parametrize(
    'document', [name for name, blocks in BLOCKS.items() if blocks]
)
def test_python_runs(document: str) -> None:
    """Blocks of a document run one after the other; configs are read."""
    names: dict[str, object] = {}
    for block in BLOCKS[document]:
        if is_quoted(block, document):
            continue
        if any(part in block for part in NOT_EXECUTED):
            compile(block, document, 'exec')
        elif '_base_ =' in block:
            Path('block.py').write_text(block)
            load_config('block.py')
        else:
            exec(block.replace('CONFIG', CONFIG), names)
            for hook in names.pop('default_hooks', {}).values():
                HOOKS.build(hook)


def command_lines(text: str) -> Iterator[str]:
    """Yield those of blocks and, if they are of this project, inline ones."""
    blocks = re.findall(r'^```bash\n(.*?)^```$', text, re.M | re.S)
    yield from ''.join(blocks).replace('\\\n', ' ').splitlines()
    prose = re.sub(r'^```.*?^```$', '', text, flags=re.M | re.S)
    for code in re.findall(r'`([^`]+)`', prose):
        if re.match(r'(\w+=\S+ )*(python|make)\s', code):
            yield code


class ParsedError(Exception):
    """Raised where a tool has parsed its command line."""


def parse(command: list[str]) -> None:
    """Run a Python command up to the point where it has parsed its line."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_only(parser, args=None, namespace=None):
        parse_args(parser, args, namespace)
        raise ParsedError

    if command[0] == '-m':
        command = [command[1].replace('.', '/') + '.py', *command[2:]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', command)
        patch.setattr(argparse.ArgumentParser, 'parse_args', parse_only)
        with pytest.raises(ParsedError):
            runpy.run_path(command[0], run_name='__main__')


def check_command(line: str, targets: set[str]) -> None:
    """Check that a command line names what there is."""
    words = shlex.split(line.replace('[', '').replace(']', ''), comments=True)
    while words and re.match(r'\w+=', words[0]):
        del words[0]
    if not words or words[0] in OTHERS:
        return
    program, *arguments = words
    if program == 'lors-det':
        program, tool = 'python', COMMANDS[arguments[0]][0]
        arguments = [f'tools/{tool}.py', *arguments[1:]]
    if program == 'make':
        assert set(arguments) <= targets
    elif program.startswith('tools/dist_'):
        shown = subprocess.run(
            words,
            env={**os.environ, 'PYTHON': 'echo'},
            capture_output=True,
            text=True,
            check=True,
        )
        command = shown.stdout.split('tools/')[1].split()
        parse([f'tools/{command[0]}', *command[1:]])
    else:
        assert program == 'python'
        parse(arguments)


@pytest.mark.parametrize('document', DOCUMENTS)
def test_commands_are_right(
    document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a command line names exists, and its arguments are taken."""
    monkeypatch.chdir(ROOT)
    makefile = (ROOT / 'Makefile').read_text()
    targets = set(re.findall(r'^(\w+):', makefile, re.M))
    for line in command_lines(DOCUMENTS[document]):
        check_command(line, targets)
