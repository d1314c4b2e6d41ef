# SPDX-License-Identifier: Apache-2.0
"""The page about detections, the sheet of images, and wrong files."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.command_lines import run_here
from helpers.small_coco import config, content, spoil, write
from PIL import Image

TOOL = 'tools/analyse.py'


def detections() -> list[dict[str, Any]]:
    """One for each object, and a false one in each image."""
    keys = ('image_id', 'category_id', 'bbox')
    found = [
        {**{key: each[key] for key in keys}, 'score': 0.9}
        for each in content()['annotations']
    ]
    false = [{**each, 'bbox': [25, 2, 9, 9], 'score': 0.5} for each in found]
    return found + false[::2]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, str]:
    """A folder with results, and a config."""
    write(tmp_path)
    loader = {'dataset': config(tmp_path, type='CocoDataset')}
    (tmp_path / 'config.py').write_text(f'test_dataloader = {loader}')
    for name, count in (('dense', 8), ('<lors>', 12)):
        file = tmp_path / f'{name}.bbox.json'
        file.write_text(json.dumps(detections()[:count]))
    return tmp_path, str(tmp_path / 'config.py')


class Tags(HTMLParser):
    """Checks that tags are closed; collects text and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag not in ('script', 'link', 'iframe')
        if tag not in ('img', 'meta'):
            self.open.append(tag)
        values = dict(attrs)
        assert tag != 'img' or values['alt']
        self.addresses += [
            v for k, v in attrs if k in ('src', 'href', 'srcset')
        ]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize('names', [['dense'], ['dense', '<lors>']])
def test_page(files: tuple[Path, str], names: list[str]) -> None:
    folder, config_file = files
    page = folder / 'page.html'
    results = [folder / f'{name}.bbox.json' for name in names]
    run_here(TOOL, config_file, *results, '--out', page, '--resamples', '20')
    html = page.read_text('utf-8')
    assert not re.search('https?:', html)
    tags = Tags()
    tags.feed(html)
    tags.close()
    assert not tags.open
    assert len(tags.addresses) == 5
    for address in tags.addresses:
        kind, _, data = address.partition(';base64,')
        assert kind in ('data:image/svg+xml', 'data:image/jpeg')
        picture = base64.b64decode(data)
        assert not re.search(rb'href="(?!#|data:)|<script', picture)
    (title,) = re.findall('<h1>(.*)</h1>', html)
    assert title == ' and '.join(names).replace('<', '&lt;').replace(
        '>', '&gt;'
    )
    text = ' '.join(tags.text)
    assert '4 images, 8 objects' in text
    for name in names:
        assert name in text
    assert ('<lors> minus dense' in text) == (len(names) == 2)
    assert '100.0' in text  # the AP of perfect detections


@pytest.mark.parametrize('names', [['dense'], ['dense', '<lors>']])
def test_sheet(files: tuple[Path, str], names: list[str]) -> None:
    folder, config_file = files
    sheet = folder / 'sheet.png'
    results = [folder / f'{name}.bbox.json' for name in names]
    run_here(TOOL, config_file, *results, '--sheet', sheet)
    with Image.open(sheet) as picture:
        assert picture.width == 12 * 110
        # Two rows of two images, or four rows of one.
        rows = picture.height / picture.width * 12 / len(names)
        assert 3 < rows < 8
        blue = (0, 0x72, 0xB2)  # of the first class
        colors = picture.convert('RGB').getcolors(1 << 20)
        assert blue in {color for _, color in colors or ()}


def changed(**values: Any) -> str:
    return json.dumps([*detections(), {**detections()[0], **values}])


NO_RESULTS = ' is cut off, or has another form: expected what'
# Content of the file (None: there is none) and what the line says of it.
BROKEN = {
    'missing': (None, ' does not exist'),
    'empty': ('', ' is empty'),
    'cut off': (changed()[:-9], NO_RESULTS),
    'a pickle': ('\x80\x04', NO_RESULTS),
    'no detections': ('[]', ' holds no detections'),
    'annotations': (json.dumps(content()), NO_RESULTS),
    'a number': ('7', NO_RESULTS),
    'no score': ('[{"image_id": 1, "category_id": 10, "bbox": [1, 1, 2, 2]}]',
                 NO_RESULTS),
    'three numbers': (changed(bbox=[1, 2, 3]), NO_RESULTS),
    'text': (changed(bbox='abcd'), NO_RESULTS),
    'NaN': (changed(score=float('nan')), ': a box or score is not finite'),
    'an image': (changed(image_id=99), ': 1 of 5 values of image_id are not '
                 'in {}/ann.json, like 99: expected results of that data se'),
    'a class': (changed(category_id=1), ': 1 of 3 values of category_id are '
                'not in {}/ann.json, like 1: expected results of that data s'),
}  # fmt: skip


@pytest.mark.parametrize('name', BROKEN)
def test_broken_results(files: tuple[Path, str], name: str) -> None:
    folder, config_file = files
    text, message = BROKEN[name]
    results = folder / 'broken.bbox.json'
    if text is not None:
        results.write_text(text, 'latin-1')
    with pytest.raises(SystemExit) as info:
        run_here(TOOL, config_file, results)
    line = f'error: RESULTS: {results}{message.format(folder)}'
    assert str(info.value).startswith(line)
    assert '\n' not in str(info.value)


def test_other_mistakes(files: tuple[Path, str]) -> None:
    folder, config_file = files
    good = folder / 'dense.bbox.json'

    def line(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as info:
            run_here(TOOL, *arguments)
        return str(info.value)

    assert line(config_file, good, good) == (
        f'error: RESULTS: {good} is named twice'
    )
    assert line(config_file, *[good] * 3) == (
        'error: RESULTS: 3 files, expected 1 or 2'
    )
    assert line(config_file, good, '--resamples', '1') == (
        'error: --resamples 1: expected at least 2'
    )
    assert line('configs/deit/deit-tiny_digits.py', good) == (
        "error: CONFIG: test_dataloader.dataset.type='DigitImages': expected "
        "one of ['CocoDataset', 'CheckedCocoDataset']"
    )
    assert line(config_file, good, '--sheet', folder / 'a.doc').startswith(
        f"error: --sheet {folder}/a.doc: Format 'doc' is not supported"
    )
    (folder / 'images/2.png').unlink()
    assert line(config_file, good, '--sheet', folder / 'a.png') == (
        f'error: image: {folder}/images/2.png does not exist'
    )
    spoil(folder, lambda c: c['categories'].reverse())
    assert 'expected the same order' in line(config_file, good)
