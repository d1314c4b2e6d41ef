# SPDX-License-Identifier: Apache-2.0
"""A GPU in one command: python -m benchmarks.gpu --minutes 8 --out DIR.

What has to be right first, then time and memory, in the order of importance:
what does not fit into the minutes is left out. Results are written after each
part. Exit status 1 if something that has to be right is not.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from benchmarks import gpu_checks as checks
from benchmarks import gpu_speed as speed
from benchmarks.document import machine
from benchmarks.gpu_checks import Context, Row
from lors_det.analysis.tables import markdown_table
from lors_det.errors import UsageError, one_line
from lors_det.files import atomic_write
from lors_det.predict import check_device


class Part(NamedTuple):
    """A part of the command.

    Args:
        name: A title.
        run: Yields the rows of a table.
        seconds: What it may take on a GPU; not begun with less.
        has_to_pass: Whether a failed row is an exit status of 1.
        needs_gpu: Whether it cannot be tried on a processor.
    """

    name: str
    run: Callable[[Context], Iterator[Row]]
    seconds: int
    has_to_pass: bool = False
    needs_gpu: bool = False


def _timed(
    what: str, mode: str, batch: int, seconds: int, way: str = 'eager'
) -> Part:
    run = partial(SPEED[what], mode=mode, batch=batch, way=way)
    name = f'{what}, {mode}, batch {batch}, {way}'
    return Part(name, run, seconds, needs_gpu=way != 'eager')


SPEED: dict[str, Callable[..., Iterator[Row]]] = {
    'Decoder': speed.decoders,
    'Detector': speed.detectors,
    'Kernels of the decoder': speed.kernels,
}
PARTS = (
    Part('Numbers of the releases', checks.golden, 30, True),
    Part('Types against float64', checks.precision, 20, True),
    Part('No wait for the device', checks.synchronisation, 10, True, True),
    Part('CUDA graph', checks.graph, 10, True, True),
    Part('Mixed precision with a scaler', checks.amp, 40, True),
    Part('Launcher', checks.launcher, 40, True),
    Part('compile=True', checks.compiled, 100, True),
    _timed('Decoder', 'forward', 1, 15),
    _timed('Decoder', 'train', 2, 15),
    _timed('Detector', 'train', 2, 20),
    _timed('Detector', 'forward', 1, 15),
    _timed('Decoder', 'train', 16, 20),
    _timed('Decoder', 'forward', 16, 20),
    _timed('Detector', 'train', 16, 30),
    _timed('Detector', 'forward', 16, 20),
    _timed('Kernels of the decoder', 'train', 16, 15),
    _timed('Kernels of the decoder', 'forward', 1, 10),
    _timed('Decoder', 'forward', 1, 15, 'graphed'),
    _timed('Decoder', 'train', 2, 15, 'graphed'),
    _timed('Decoder', 'forward', 16, 20, 'graphed'),
    _timed('Decoder', 'train', 16, 20, 'graphed'),
    _timed('Decoder', 'forward', 1, 60, 'compiled'),
    _timed('Decoder', 'train', 2, 90, 'compiled'),
    _timed('Decoder', 'forward', 16, 60, 'compiled'),
    _timed('Decoder', 'train', 16, 90, 'compiled'),
    _timed('Detector', 'forward', 1, 90, 'compiled'),
    _timed('Detector', 'train', 16, 120, 'compiled'),
)


def run(
    parts: Sequence[Part], context: Context, out: Path
) -> list[dict[str, Any]]:
    """Run parts as long as there is time, and write after each.

    Args:
        parts: In the order of importance.
        context: Where, and until when.
        out: Folder of gpu.json and gpu.md.

    Returns:
        ``name``, ``rows``, and ``seconds`` that it took, of each part.
    """
    # Float32 is no TF32; what is timed is bfloat16.
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False
    results: list[dict[str, Any]] = []
    for part in parts:
        begin = time.monotonic()
        rows = list(_rows(part, context))
        seconds = time.monotonic() - begin
        results.append({'name': part.name, 'seconds': seconds, 'rows': rows})
        _write(out, context.device, results)
    return results


def _rows(part: Part, context: Context) -> Iterator[Row]:
    """Run a part, if it fits; an error is its last row."""
    left = max(0.0, context.left())
    if part.needs_gpu and not context.on_gpu:
        yield {'result': 'not run: no CUDA device'}
        return
    if part.seconds > left:
        text = f'left out: {left:.0f} s left, needs {part.seconds}'
        yield {'result': text}
        return
    print(f'{part.name} ...', flush=True)
    try:
        gc.collect()
        if context.on_gpu:
            torch.cuda.empty_cache()
        yield from part.run(context)
    except Exception as error:
        traceback.print_exc()
        yield {'result': 'failed', 'found': one_line(error)}


def _write(out: Path, device: str, results: list[dict[str, Any]]) -> None:
    found = {'machine': machine(), 'device': device, 'parts': results}
    atomic_write(out / 'gpu.json', json.dumps(found, indent=1) + '\n')
    text = [f'Measured on: {machine()}; device {device}.']
    if not device.startswith('cuda'):
        text.append('The command was tried with small shapes: no measurement.')
    for result in results:
        rows = [
            {k: v for k, v in row.items() if k != 'seconds'}
            for row in result['rows']
        ]
        header = list(dict.fromkeys(key for row in rows for key in row))
        lines = [[row.get(key, '') for key in header] for row in rows]
        text += [
            f'**{result["name"]}** ({result["seconds"]:.0f} s)',
            markdown_table([header, *lines]),
        ]
    atomic_write(out / 'gpu.md', '\n\n'.join(text) + '\n')


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all parts.

    Args:
        arguments: Those of the process if None.

    Raises:
        SystemExit: If something is not right.
    """
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.gpu', description=__doc__
    )
    parser.add_argument('--minutes', type=float, default=8)
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/gpu'), metavar='DIR'
    )
    parser.add_argument(
        '--device',
        default='cuda',
        help='cpu tries the command itself: all is small, and what needs '
        'CUDA is not run',
    )
    args = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * args.minutes
    try:
        check_device(args.device)
    except UsageError as error:
        raise SystemExit(f'error: {error}') from None
    context = Context(args.device, deadline)
    if context.on_gpu:
        torch.cuda.set_device(torch.device(args.device).index or 0)
    results = run(PARTS, context, args.out)
    print(Path(args.out, 'gpu.md').read_text())
    failed = [
        part.name
        for part, result in zip(PARTS, results, strict=True)
        if part.has_to_pass
        and any(row['result'] == 'failed' for row in result['rows'])
    ]
    if failed:
        raise SystemExit(f'error: failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()
