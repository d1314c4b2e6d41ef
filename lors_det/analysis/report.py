# SPDX-License-Identifier: Apache-2.0
"""Write one HTML page about the detections of one model or two."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import partial
from html import escape

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lors_det.analysis.average_precision import (
    METRICS,
    bootstrap,
    class_ap,
    precision_curves,
    with_mean,
)
from lors_det.analysis.detection_errors import (
    KINDS,
    find_confident,
    find_errors,
)
from lors_det.analysis.report_figures import (
    calibration_error,
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_errors,
)
from lors_det.analysis.results import Truth, match
from lors_det.analysis.sheet import draw_sheet

NUM_WORST = 6
PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1120px;
  margin: 1.5em auto; padding: 0 1em; }}
h1 {{ font-size: 1.5em; margin-bottom: 0; }}
h2 {{ font-size: 1.15em; margin: 1.6em 0 .3em; }}
p {{ margin: .3em 0; max-width: 62em; }}
table {{ border-collapse: collapse; margin: .5em 0; }}
th, td {{ padding: .3em .8em; border-bottom: 1px solid #ddd;
  text-align: right; vertical-align: top; white-space: nowrap; }}
th:first-child {{ text-align: left; }}
small {{ color: #666; display: block; font-weight: normal; }}
img {{ max-width: 100%; height: auto; }}
.pair {{ display: flex; flex-wrap: wrap; gap: 1em 2em; }}
.pair > div {{ flex: 1 1 420px; }}
</style></head><body>
<h1>{title}</h1>
<p>{data}: {num_images} images, {num_objects} objects.</p>
<h2>Average precision</h2>
{headlines}
<p>COCO's AP in per cent, at most 100 detections per image and class; small:
below 32 x 32 pixels, large: above 96 x 96. Below each number: the middle 95 %
of {num_resamples} resamples of the images (bootstrap). It says how much
another draw of images would change the number, not how much another training
run would. Of two models, a difference whose interval excludes 0 is
<b>bold</b>.</p>
<h2>Precision and recall</h2>
{curves}
<div class="pair">
<div><h2>Errors by kind</h2>
{errors}
<p>By how much AP50 would rise without one kind of error (TIDE,
arXiv:2008.08115). They do not add up.</p></div>
<div><h2>Calibration</h2>
{calibration}
<p>Below the line, scores promise too much; larger dots stand for more
detections. Expected calibration error: {calibration_errors}.</p></div>
</div>
<p>How many errors there are, at any score:</p>
{kinds}
<h2>Confusion matrix</h2>
{confusion}
<p>Detections with a score of at least {score_thr:g}, matched at IoU 0.5
whatever their class. Colour: share of the row.</p>
<h2>The worst images</h2>
<p>Those with the most mistakes at a score of at least {score_thr:g}. Dashed:
a false detection; in the truth, an object that no model finds.</p>
{worst}
<h2>By class and size</h2>
{by_class}
</body></html>
"""


def write_report(
    truth: Truth,
    models: Mapping[str, COCO],
    score_thr: float,
    num_resamples: int,
) -> str:
    """Write the page.

    Args:
        truth: The objects.
        models: Detections by the model's name, one or two.
        score_thr: Score from which on a detection counts in the confusion
            matrix and the pictures.
        num_resamples: Resamples for the intervals.

    Returns:
        HTML that needs no other file.

    Raises:
        UsageError: If an image that is drawn is missing.
    """
    matched = {name: match(truth, boxes) for name, boxes in models.items()}
    errors = {name: find_errors(each) for name, each in matched.items()}
    confident = find_confident(truth, models, score_thr)
    objects = next(iter(errors.values())).objects['category_id']
    tables = _ap_tables(matched, num_resamples)
    headlines = pd.DataFrame({n: each.iloc[0] for n, each in tables.items()})
    sizes = {n: (objects == i).sum() for i, n in truth.classes.items()}
    rows = [
        f'{escape(name)}<small>{size} objects</small>'
        for name, size in {'all classes': len(objects), **sizes}.items()
    ]
    curves = {name: precision_curves(each) for name, each in matched.items()}
    kinds = pd.DataFrame({n: each.counts() for n, each in errors.items()})
    kinds.index = pd.Index(f'{kind}: {text}' for kind, text in KINDS.items())
    wrong = [
        table['image_id'][~table['right']]
        for each in confident.values()
        for table in (each.found, each.objects)
    ]
    worst = pd.concat(wrong).value_counts().index[:NUM_WORST]
    return PAGE.format(
        title=escape(' and '.join(models)),
        data=escape(truth.name),
        num_images=len(truth.coco.imgs),
        num_objects=len(objects),
        headlines=_table(headlines.T.rename(index=escape)),
        num_resamples=num_resamples,
        curves=_image(draw_curves(curves, sizes), 'precision and recall'),
        errors=_image(draw_errors(errors), 'AP50 lost by kind of error'),
        calibration=_image(draw_calibration(errors), 'hits by score'),
        calibration_errors=', '.join(
            f'{escape(name)} {calibration_error(each.detections):.3f}'
            for name, each in errors.items()
        ),
        kinds=_table(kinds),
        confusion=_image(
            draw_confusion(confident, truth.classes), 'confusions'
        ),
        score_thr=score_thr,
        worst=_image(
            draw_sheet(truth, confident, worst.tolist()),
            'truth beside detections',
            'jpeg',
        ),
        by_class=''.join(
            f'<h3>{escape(name)}</h3>{_table(table.set_axis(rows))}'
            for name, table in tables.items()
        ),
    )


def _ap_tables(
    models: Mapping[str, COCOeval], num_resamples: int
) -> dict[str, pd.DataFrame]:
    """Return AP and intervals by class, of each model and the difference."""
    points = [
        with_mean(class_ap(precision_curves(each))) for each in models.values()
    ]
    samples = [bootstrap(each, num_resamples) for each in models.values()]
    names = list(models)
    if len(models) == 2:
        names.append(f'{names[1]} minus {names[0]}')
        points.append(points[1] - points[0])
        samples.append(samples[1] - samples[0])
    tables = {}
    for name, point, sample in zip(names, points, samples, strict=True):
        form = '.1f' if name in models else '+.1f'
        ends = np.percentile(100 * sample, [2.5, 97.5], axis=0)
        cells = _cells(100 * point, *ends, form)
        tables[name] = pd.DataFrame(cells, columns=METRICS)
    return tables


@partial(np.vectorize, otypes=[object])
def _cells(point: float, low: float, high: float, form: str) -> object:
    """Write numbers with intervals below; bold if a change is certain."""
    if np.isnan(point):
        return '-'
    text = f'{point:{form}}'
    if form.startswith('+') and (low > 0 or high < 0):
        text = f'<b>{text}</b>'
    return f'{text}<small>{low:{form}} to {high:{form}}</small>'


def _table(table: pd.DataFrame) -> str:
    """Write a table; cells and row names may have tags."""
    html: str = table.rename(columns=escape).to_html(escape=False, border=0)
    return html


def _image(figure: Figure, text: str, form: str = 'svg') -> str:
    """Write a figure as a part of the page."""
    data = io.BytesIO()
    figure.savefig(data, format=form, dpi=110)
    kind = 'svg+xml' if form == 'svg' else form
    code = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{text}" src="data:image/{kind};base64,{code}">'
