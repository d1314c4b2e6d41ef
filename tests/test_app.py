# SPDX-License-Identifier: Apache-2.0
"""The app of demo/app.py: by its client API, and in a real browser.

``APP_SCREENSHOT=docs/images/app.png python -m pytest tests/test_app.py``
makes the picture of docs/app.md.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from helpers.command_lines import ROOT, run_here
from PIL import Image

from demo import app
from lors_det.cli.boundary import OneLineErrors
from lors_det.predict import Predictor

IMAGE = ROOT / 'demo/bccd/images/BloodImage_00058.jpg'
BROWSER = shutil.which('chromium')
NAMES = [Path(config).stem for config, _ in (app.LORS, app.DENSE)]


@pytest.fixture(scope='module')
def models() -> dict[str, Predictor]:
    return app.load([app.LORS, app.DENSE], 'cpu', OneLineErrors())


@pytest.fixture(scope='module')
def address(models: dict[str, Predictor]) -> Iterator[str]:
    """Address of the running app."""
    pytest.importorskip('gradio')
    blocks = app.build(models)
    yield app.serve(blocks, None)
    blocks.close()


@pytest.fixture(scope='module')
def client(address: str) -> Any:
    from gradio_client import Client

    return Client(address, verbose=False)


def detect(client: Any, image: Path, score: float, stage: int) -> list[Any]:
    from gradio_client import handle_file

    return client.predict(handle_file(image), score, stage, api_name='/detect')


def test_table(client: Any, models: dict[str, Predictor]) -> None:
    """The last stage finds what the predictor does; sizes are the models'."""
    *pictures, table = detect(client, IMAGE, 0.4, 6)
    assert table['headers'] == [*app.COLUMNS]
    *rows, ratios = table['data']
    assert [row[0] for row in rows] == NAMES == [*models]
    for picture, row, predictor in zip(
        pictures, rows, models.values(), strict=True
    ):
        found = predictor(IMAGE)[0].pred_instances
        parts = predictor.model, predictor.model.decoder
        sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
        assert [int(text.replace(',', '')) for text in row[1:3]] == sizes
        assert float(row[3]) > 0
        assert int(row[4]) == (found.scores >= 0.4).sum() > 0
        with Image.open(picture) as drawn, Image.open(IMAGE) as image:
            assert drawn.width == image.width
            assert drawn.height > image.height  # the legend
    assert ratios == ['first / second', '0.74', '0.46', ratios[3], '']


def test_sliders(client: Any) -> None:
    """Another stage gives another picture; a high score leaves the image."""
    last = detect(client, IMAGE, 0.4, 6)
    first = detect(client, IMAGE, 0.4, 1)
    for one, other in zip(last[:2], first[:2], strict=True):
        with Image.open(one) as a, Image.open(other) as b:
            assert np.asarray(a).tobytes() != np.asarray(b).tobytes()
    *pictures, table = detect(client, IMAGE, 1, 6)
    assert [row[-1] for row in table['data']] == ['0', '0', '']
    with Image.open(IMAGE) as image:
        wanted = np.asarray(image, dtype=float)
    for picture in pictures:
        with Image.open(picture) as drawn:
            found = np.asarray(drawn.convert('RGB'), dtype=float)
        # WebP loses a little.
        assert abs(found[: len(wanted)] - wanted).mean() < 5


@pytest.mark.parametrize('content', [b'no image', IMAGE.read_bytes()[:4000]])
def test_broken_image(client: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / 'bad.jpg').write_bytes(content)
    message = r'^\S+bad.jpg: file that is no image, or cut off$'
    with pytest.raises(Exception, match=message):
        detect(client, tmp_path / 'bad.jpg', 0.4, 6)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('--port {port}', '--port {port}: is taken, or no port'),
        ('--port 99999', '--port 99999: is taken, or no port'),
        ('{config} {other}', "the checkpoint .* holds mode 'dense'"),
        ('--device cuda:99', '--device cuda:99: is not there'),
    ],
)
def test_bad_arguments(arguments: str, message: str) -> None:
    pytest.importorskip('gradio')
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        values = {
            'config': app.LORS[0],
            'other': app.DENSE[1],
            'port': taken.getsockname()[1],
        }
        message = f'^error: .*{message.format(**values)}'
        with pytest.raises(SystemExit, match=message) as error:
            run_here('demo/app.py', *arguments.format(**values).split())
    assert '\n' not in str(error.value)


def test_gradio_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'gradio', None)
    message = r"^error: the app needs gradio: pip install 'lors_det\[demo\]'$"
    with pytest.raises(SystemExit, match=message):
        run_here('demo/app.py')


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """The app in Chromium; it may ask no other machine for anything."""
    if not BROWSER:
        pytest.skip('no browser: apt-get install chromium')
    sync_api = pytest.importorskip(
        'playwright.sync_api', reason='no playwright: pip install playwright'
    )
    hosts = set()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=['--no-sandbox']
        )
        page = browser.new_page(viewport={'width': 1280, 'height': 900})
        page.on('request', lambda r: hosts.add(urlsplit(r.url).hostname))
        page.goto(address)
        yield page
        browser.close()
    assert hosts - {None} == {'127.0.0.1'}  # None: data inside of the page


def test_in_a_browser(page: Any) -> None:
    """Upload an image, move both sliders, read the table."""
    cells = page.locator('[data-testid^="cell-"]')

    def new_counts(before: list[str]) -> list[str]:
        """Wait until the last column has changed."""
        for _ in range(300):
            counts = cells.all_inner_texts()[4:10:5]
            if len(counts) == 2 and counts != before:
                return counts
            page.wait_for_timeout(100)
        raise AssertionError(f'the table still says {before}')

    def move(name: str, value: str) -> None:
        page.get_by_label(f'range slider for {name}').fill(value)

    example = new_counts([])
    page.locator('input[type=file]').first.set_input_files(IMAGE)
    uploaded = new_counts(example)
    move('lowest score', '0.3')
    more = new_counts(uploaded)
    for low, high in zip(more, uploaded, strict=True):
        assert int(low) > int(high)
    move('stage', '1')
    early = new_counts(more)
    texts = cells.all_inner_texts()
    assert texts[0::5] == [*NAMES, 'first / second']
    assert texts[2::5] == ['1,007,606', '2,175,990', '0.46']
    if 'APP_SCREENSHOT' in os.environ:
        move('lowest score', '0.4')
        move('stage', '5')
        new_counts(early)
        page.mouse.click(1, 1)
        page.wait_for_timeout(2000)
        page.screenshot(path=os.environ['APP_SCREENSHOT'], full_page=True)
