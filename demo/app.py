# SPDX-License-Identifier: Apache-2.0
"""Detectors side by side in the browser: python demo/app.py --help."""

from __future__ import annotations

import argparse
import math
import os
import time
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from timeit import timeit
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from lors_det.analysis.pictures import COLORS, draw_detections
from lors_det.cli.boundary import OneLineErrors
from lors_det.errors import UsageError

if TYPE_CHECKING:  # what imports torch is imported late, for --help
    from lors_det.analysis.trace import ImageTrace
    from lors_det.predict import Predictor

ROOT = Path(__file__).resolve().parents[1]
CONFIG = f'{ROOT}/configs/bccd/%s_mobilenetv2_bccd.py'
CHECKPOINT = f'{ROOT}/demo/checkpoints/%s_mobilenetv2_bccd.pth'
LORS = CONFIG % 'lors-adamixer', CHECKPOINT % 'lors-adamixer'
DENSE = CONFIG % 'adamixer', CHECKPOINT % 'adamixer'
#: Of BCCD's test part: the bundled models were not trained on them.
EXAMPLES = [
    f'{ROOT}/demo/bccd/images/BloodImage_{number:05}.jpg'
    for number in (16, 31, 68, 135, 303)
]
ABOUT = (
    'What a detector finds after each of its stages: the boxes, and the '
    'points of the image that the stage read for them. Every box starts as '
    'the whole image.'
)
COLUMNS = {  # of the table, with their widths
    'model': '35%',
    'parameters': '16%',
    'in the decoder': '14%',
    'ms per image, this machine': '22%',
    'found': '13%',
}


def main():
    """Parse the command line and serve the app."""
    parser = argparse.ArgumentParser(
        description='Show in the browser what trained AdaMixers find in an '
        'image, stage by stage; without arguments the bundled LORS and dense '
        'models, side by side (docs/app.md).'
    )
    parser.add_argument('config', nargs='?', metavar='CONFIG')
    parser.add_argument('checkpoint', nargs='?', metavar='CHECKPOINT')
    parser.add_argument(
        '--compare',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a second model, beside the first',
    )
    parser.add_argument(
        '--port',
        type=int,
        help='of this machine (the first free one from 7860 if not given)',
    )
    parser.add_argument(
        '--device',
        help='cpu, cuda:0, ... (the best that is there if not given)',
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='let a .pt2 file run code while it is loaded',
    )
    args = parser.parse_args()
    if args.config and not args.checkpoint:
        parser.error('expected CONFIG and CHECKPOINT, or neither')
    first = (args.config, args.checkpoint) if args.config else LORS
    second = args.compare or (None if args.config else DENSE)
    with OneLineErrors() as errors:
        if not find_spec('gradio'):
            raise UsageError(
                "the app needs gradio: pip install 'lors_det[demo]'"
            )
        files = [first, second] if second else [first]
        app = build(load(files, args.device, errors, args.trust))
        print(serve(app, args.port), flush=True)
        app.block_thread()


def load(
    files: list[tuple[str, str]],
    device: str | None,
    errors: OneLineErrors,
    trust: bool = False,
) -> dict[str, Predictor]:
    """Load models from their configs and checkpoints, and name them."""
    from lors_det.cli.explain import load_predictor
    from lors_det.files import load_config

    models = {}
    for config, checkpoint in files:
        errors.cfg = load_config(config)
        name = Path(config).stem
        name = checkpoint if name in models else name
        models[name] = load_predictor(errors.cfg, checkpoint, device, trust)
    errors.first_batch_done = True  # what fails now is no mistake of a user
    return models


def build(models: dict[str, Predictor]) -> Any:
    """Lay out the app."""
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'  # it must not call home
    import gradio as gr

    predictors = tuple(models.values())
    decoders = [getattr(each.model, 'decoder', None) for each in predictors]
    num_stages = max(getattr(each, 'num_stages', 1) for each in decoders)
    with gr.Blocks(title='lors_det') as app:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=2):
                image = gr.Image(
                    EXAMPLES[0], label='input', height=240, buttons=[]
                )
                # Not opened by gradio: `detect` says what is no image.
                image.preprocess = lambda upload: upload and upload.path
                gr.Examples(EXAMPLES, image, label='test images of BCCD')
            with gr.Column(scale=3):
                score = gr.Slider(0, 1, 0.4, step=0.01, label='lowest score')
                stage = gr.Slider(
                    1, num_stages, num_stages, step=1, label='stage'
                )
                table = gr.Dataframe(
                    headers=[*COLUMNS], column_widths=[*COLUMNS.values()],
                    wrap=True, buttons=[],
                )  # fmt: skip
        pictures = []
        with gr.Row():
            for name in models:
                with gr.Column():
                    gr.Markdown(f'**{name}**')  # a label would hide scores
                    pictures.append(
                        gr.Image(label=name, show_label=False, buttons=[])
                    )

        def update(file: str | None, score: float, stage: int) -> list[Any]:
            """Show what a stage finds in an image file."""
            if file is None:  # the image was removed
                return [None] * (len(models) + 1)
            try:
                traces, times = detect(predictors, file)
            except UsageError as error:
                raise gr.Error(str(error), print_exception=False) from None
            drawn = [draw(trace, score, int(stage)) for trace in traces]
            found = [count for _, count in drawn]
            rows = tabulate(models, times, found)
            return [picture for picture, _ in drawn] + [rows]

        gr.on(
            [app.load, image.change, score.change, stage.change],
            update,
            [image, score, stage],
            [*pictures, table],
            api_name='detect',
            trigger_mode='always_last',
            show_progress='minimal',
        )
    return app


def serve(app: Any, port: int | None) -> str:
    """Start to serve the app on this machine, and return its address."""
    import gradio as gr

    font = [gr.themes.Font('system-ui'), gr.themes.Font('sans-serif')]
    theme = gr.themes.Default(primary_hue='blue', font=font, font_mono=font)
    try:
        _, address, _ = app.launch(
            server_port=port, theme=theme, show_error=True, footer_links=[],
            run_history=False, prevent_thread_lock=True, quiet=True,
        )  # fmt: skip
    except (OSError, OverflowError):
        raise UsageError(
            f'--port {port}: is taken, or no port that one may open'
        ) from None
    return address


@lru_cache(maxsize=16)  # so that the sliders are quick
def detect(
    predictors: tuple[Predictor, ...], file: str
) -> tuple[list[ImageTrace], list[float]]:
    """Return what stages do to an image, and milliseconds of a detection.

    Gradio names a file by its content: one name is one image.
    """
    from lors_det.analysis.trace import trace_exported, trace_image

    traces = [
        (trace_image if hasattr(each.model, 'decoder') else trace_exported)(
            each, Path(file)
        )
        for each in predictors
    ]
    times, end = [math.inf for _ in predictors], time.monotonic() + 1
    while time.monotonic() < end:  # the fastest run was disturbed least
        for i, predictor in enumerate(predictors):
            seconds = timeit(partial(predictor, file), number=1)
            times[i] = min(times[i], 1000 * seconds)
    return traces, times


def draw(
    trace: ImageTrace, score: float, stage: int
) -> tuple[np.ndarray[Any, Any], int]:
    """Draw what stage 1, 2, ... finds, and count it."""
    from lors_det.adamixer.postprocess import best_pairs

    found = trace.stages[min(stage, len(trace.stages)) - 1]
    pairs = best_pairs(found.scores[None], len(trace.scores))
    kept = pairs[0] >= score
    scores, labels, queries = (each[kept] for each in pairs)
    picture = Image.fromarray(trace.image)
    canvas, radius = ImageDraw.Draw(picture), max(picture.size) / 320
    for label, query in zip(labels, queries, strict=True):
        for x, y in found.points[query, ..., :2].flatten(0, 1).tolist():
            color = COLORS[label % len(COLORS)]
            canvas.circle((x, y), radius, color, 'white')
    bgr = np.asarray(picture)[..., ::-1]
    boxes = {
        'bboxes': found.after[queries],
        'labels': labels,
        'scores': scores,
    }
    drawn = draw_detections(bgr, SimpleNamespace(**boxes), trace.classes)
    return drawn[..., ::-1], len(scores)


def tabulate(
    models: dict[str, Predictor], times: list[float], found: list[int]
) -> list[list[str]]:
    """Return a row for each model; of two, also the ratio."""
    sizes = [
        [sum(p.numel() for p in part.parameters()) for part in parts]
        for parts in (
            (each.model, getattr(each.model, 'decoder', each.model))
            for each in models.values()
        )
    ]  # 0 of exported files, which do not tell
    rows = [
        [name, *(f'{n:,}' if n else '' for n in size), f'{ms:.0f}', f'{count}']
        for name, size, ms, count in zip(
            models, sizes, times, found, strict=True
        )
    ]
    if len(rows) == 2:
        pairs = [*zip(*sizes, strict=True), times]
        ratios = [f'{a / b:.2f}' if a and b else '' for a, b in pairs]
        rows.append(['first / second', *ratios, ''])
    return rows


if __name__ == '__main__':
    main()
