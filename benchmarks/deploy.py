# SPDX-License-Identifier: Apache-2.0
"""Time detectors out of Python: python -m benchmarks.deploy [--help].

Dense AdaMixer, LORS, and LORS at AdaMixer's shape, in torch, onnxruntime and
OpenVINO: each image runs through all of them, one image at a time, before the
next one comes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from onnxruntime import quantization

from benchmarks.document import machine, publish
from lors_det.analysis.tables import markdown_table
from lors_det.analysis.timing import ratio
from lors_det.deploy.export import DTYPES, export_detector
from lors_det.deploy.formats import FORMATS
from lors_det.deploy.parity import Reference
from lors_det.deploy.runtime import Detector
from lors_det.errors import UsageError
from lors_det.files import load_config
from lors_det.precision import gains
from lors_det.predict import Predictor

CONFIG = 'configs/bccd/%s_bccd.py'
WEIGHTS = 'demo/checkpoints/%s_bccd.pth'
DENSE, LORS = 'adamixer_mobilenetv2', 'lors-adamixer_mobilenetv2'
FOUR_GROUP = 'lors-adamixer_mobilenetv2_4-group'
IMAGES = Path('demo/bccd/images')
TRAINING = Path('demo/bccd/annotations/instances_train.json')
NUM_RANGES = 64  # images that give the ranges of int8
CONSTANT_WEIGHTS = {'MatMulConstBOnly': True}  # not generated ones
DOCUMENT = Path('docs/deploy.md')
HEADER = [
    'model', 'runs in', 'weights', 'time', 'file', 'p50 ms', 'p95 ms', 'MB',
    'AP',
]  # fmt: skip


class Variant(NamedTuple):
    """A detector in one runtime.

    Args:
        labels: Model, runtime, type of the stored weights.
        predictor: What runs.
        size: Bytes of the file; in torch of the weights.
        ap: On BCCD's validation part, in points; None of random weights.
    """

    labels: tuple[str, str, str]
    predictor: Predictor
    size: int
    ap: float | None


def build_variants(
    label: str, config: str, checkpoint: Path, trained: bool, folder: Path
) -> list[Variant]:
    """Export a detector, and load it in each runtime.

    Args:
        label: What the table calls the detector.
        config: Its config.
        checkpoint: Its weights.
        trained: Whether its AP means anything.
        folder: Where the files go.
    """
    eager = Predictor(config, checkpoint, 'cpu')
    reference = Reference(eager)
    compiled = load_config(config)
    compiled.model.compile = True
    size = sum(
        value.numel() * value.element_size()
        for value in eager.model.state_dict().values()
    )
    found = {
        ('torch', 'float32'): (eager, size),
        ('torch, compiled', 'float32'): (
            Predictor(compiled, checkpoint, 'cpu'), size,
        ),
    }  # fmt: skip
    if gains('bfloat16', 'cpu'):  # emulated, it is many times slower
        half = Predictor(config, checkpoint, 'cpu', dtype='bfloat16')
        found['torch, bfloat16', 'float32'] = half, size
    for file_format, name in (('onnx', 'onnxruntime'), ('openvino',) * 2):
        for dtype in DTYPES:
            path = folder / f'{label}-{dtype}{FORMATS[file_format][0]}'
            summary = export_detector(eager, path, file_format, dtype)
            found[name, dtype] = Predictor(config, path), summary.size
    folded, prepared = folder / f'{label}.onnx', folder / f'{label}-new.onnx'
    export_detector(eager, folded, 'onnx', folded=True)
    # Makes weights constant that the graph transposes.
    quantization.quant_pre_process(folded, prepared, skip_symbolic_shape=True)
    for method, quantize in (
        ('dynamic', quantize_dynamically), ('static', quantize_statically),
    ):  # fmt: skip
        path = folder / f'{label}-{method}.onnx'
        quantize(prepared, path)
        found['onnxruntime', f'int8, {method}'] = (
            Predictor(config, path), path.stat().st_size,
        )  # fmt: skip
    return [
        Variant(
            (label, runtime, dtype), predictor, size,
            reference.measure(predictor) if trained else None,
        )
        for (runtime, dtype), (predictor, size) in found.items()
    ]  # fmt: skip


def quantize_dynamically(prepared: Path, path: Path) -> None:
    """Let matrix products take int8, with the range of each of their inputs.

    Args:
        prepared: An exported file, folded, whose weights are constant.
        path: The file to write.
    """
    quantization.quantize_dynamic(
        prepared, path, op_types_to_quantize=['MatMul', 'Gemm'],
        per_channel=True, extra_options=CONSTANT_WEIGHTS,
    )  # fmt: skip


def quantize_statically(prepared: Path, path: Path) -> None:
    """Let products and convolutions take int8, in ranges of training images.

    Args:
        prepared: An exported file, folded, whose weights are constant.
        path: The file to write.
    """
    detector = Detector(prepared)
    names = detector.meta['inputs']

    def inputs() -> Iterator[dict[str, Any]]:
        for each in json.loads(TRAINING.read_text())['images'][:NUM_RANGES]:
            image = cv2.imread(str(IMAGES / each['file_name']))
            assert image is not None
            values = detector.prepare(image)
            yield {n: v[None] for n, v in zip(names, values, strict=False)}

    reader = SimpleNamespace(get_next=partial(next, inputs(), None))
    quantization.quantize_static(
        prepared, path, reader, per_channel=True,
        op_types_to_quantize=['Conv', 'MatMul', 'Gemm'],
        activation_type=quantization.QuantType.QUInt8,
        extra_options=CONSTANT_WEIGHTS,
    )  # fmt: skip


def time_images(
    variants: Sequence[Variant], images: Sequence[Path], pause: float = 0.05
) -> list[list[float]]:
    """Time from prepared images to detections.

    Args:
        variants: What runs, in alternating order.
        images: Files; each variant runs on each.
        pause: Seconds before each call.

    Returns:
        Seconds of each image, for each variant.
    """
    prepare = variants[0].predictor._prepare
    seconds: list[list[float]] = [[] for _ in variants]
    pairs = [*zip(variants, seconds, strict=True)]
    for number, path in enumerate([images[0], *images]):
        image = cv2.imread(str(path))
        batch = pseudo_collate([prepare({'img': image, 'img_id': 0})])
        for variant, spent in pairs if number % 2 else pairs[::-1]:
            # The threads of the runtime before wait busily for more work.
            time.sleep(pause)
            begin = time.perf_counter()
            variant.predictor.run(batch)
            if number:  # the first round warms up
                spent.append(time.perf_counter() - begin)
    return seconds


def table(
    variants: Sequence[Variant], seconds: Sequence[Sequence[float]]
) -> list[list[str]]:
    """Return the rows of the table; ratios are against the first variant.

    Args:
        variants: What ran.
        seconds: See `time_images`.
    """
    rows = []
    for variant, times in zip(variants, seconds, strict=True):
        p50, p95 = 1e3 * np.quantile(times, [0.5, 0.95])
        rows.append(
            [
                *variant.labels,
                ratio(times, seconds[0]).text(),
                f'{variant.size / variants[0].size:.2f}',
                f'{p50:.1f}',
                f'{p95:.1f}',
                f'{variant.size / 1e6:.1f}',
                '' if variant.ap is None else f'{variant.ap:.1f}',
            ]
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write into the document.

    Args:
        arguments: Those of the process if None.
    """
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.deploy', description=__doc__
    )
    parser.add_argument('--images', type=int, default=200, metavar='N')
    parser.add_argument(
        '--four-group',
        type=Path,
        metavar='CHECKPOINT',
        help=f'of {CONFIG % FOUR_GROUP} (random weights if not given, which '
        'take the same time)',
    )
    parser.add_argument('--document', type=Path, default=DOCUMENT)
    args = parser.parse_args(arguments)
    images = sorted(IMAGES.glob('*.jpg'))[: args.images]
    if not 1 <= args.images <= len(images):
        raise UsageError(
            f'--images {args.images}: expected 1 to {len(images)}'
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        four_group = args.four_group or draw_weights(folder)
        models = (
            ('dense', DENSE, Path(WEIGHTS % DENSE), True),
            ('LORS', LORS, Path(WEIGHTS % LORS), True),
            (
                "LORS at AdaMixer's shape", FOUR_GROUP, four_group,
                bool(args.four_group),
            ),
        )  # fmt: skip
        variants = [
            variant
            for label, config, checkpoint, trained in models
            for variant in build_variants(
                label, CONFIG % config, checkpoint, trained, folder
            )
        ]
        seconds = time_images(variants, images)
    publish(
        args.document,
        'deploy',
        f'Measured on: {machine()}; {len(images)} images of BCCD, one at a '
        'time; all runtimes may use all cores.',
        markdown_table([HEADER, *table(variants, seconds)]),
    )


def draw_weights(folder: Path) -> Path:
    """Write random weights of LORS at AdaMixer's shape.

    Args:
        folder: Where the file goes.
    """
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(load_config(CONFIG % FOUR_GROUP).model)
    path = folder / 'random.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    return path


if __name__ == '__main__':
    main()
