# SPDX-License-Identifier: Apache-2.0
"""From dense checkpoints to LORS: python studies/bccd_uptrain.py DENSE_RUNS.

DENSE_RUNS is the work directory of studies/bccd-modes.yml, whose dense runs
(dense_seed-N) are factorised and fine-tuned; the dense model itself is trained
for as many further steps, to compare with. One row per seed, ranks, way to fit
and number of steps; rows that are there are not measured again.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from lors_det.analysis.tables import markdown_table
from lors_det.files import atomic_write, write_between_marks

DENSE = 'configs/bccd/adamixer_mobilenetv2_bccd.py'
CONFIG = 'configs/bccd/lors-adamixer_mobilenetv2_4-group_bccd.py'
ROWS = Path('studies/bccd-uptrain.csv')
RANKS = {'4 and 2': (4, 2), '1 and 1': (1, 1)}  # of kernels and projection
FITS = {
    'unweighted, uniform': ['--images', '0', '--given'],
    'unweighted, allocated': ['--images', '0'],
    'weighted, uniform': ['--given'],
    'weighted, allocated': [],
}
CONTROL = ('dense', 'none')
TUNED = ('none', 'weighted, uniform', 'weighted, allocated')
STEPS = 200  # a quarter of a training from scratch
TEST = {
    'val_dataloader.dataset.ann_file': 'annotations/instances_test.json',
    'val_evaluator.ann_file': 'demo/bccd/annotations/instances_test.json',
    'train_cfg.max_iters': STEPS,
    'train_cfg.val_interval': STEPS // 4,
    # The rate that the dense training ended with: a higher one first undoes
    # what the factorisation kept.
    'optim_wrapper.optimizer.lr': 8e-5,
    'default_hooks.checkpoint.interval': STEPS,
}


def run(*command):
    """Run a tool of this project; show its output if it fails."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={'OMP_NUM_THREADS': '1', **os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout[-4000:])


def scores(work_dir):
    """Return AP, AP50 and AP75 in per cent of all evaluations, in order."""
    found = []
    for file in sorted(work_dir.rglob('*.json')):
        for line in file.read_text().splitlines():
            if 'coco/bbox_mAP' in line:
                record = json.loads(line)
                names = (f'coco/bbox_mAP{end}' for end in ('', '_50', '_75'))
                found.append([100 * record[name] for name in names])
    return found


def factorise(dense, ranks, fit, folder):
    """Make a dense checkpoint LORS; return config and checkpoint."""
    config = folder / 'given.py'
    config.parent.mkdir(parents=True, exist_ok=True)
    kernels, projection = RANKS[ranks]
    config.write_text(
        f'_base_ = {str(Path(CONFIG).resolve())!r}\n'
        'model = dict(decoder=dict(stacks=dict(mixing_kernels=dict('
        f'rank={kernels}), mixing_out_proj=dict(rank={projection}))))\n'
    )
    lors = folder / 'lors'
    run(
        'tools/uptrain.py', dense, config, '--out', lors, '--overwrite',
        *FITS[fit],
    )  # fmt: skip
    return lors / 'lors.py', lors / 'lors.pth'


def measure(dense, ranks, fit, folder):
    """Yield (steps of fine-tuning, scores) of one way to factorise."""
    if (ranks, fit) == CONTROL:
        config, checkpoint = DENSE, dense
    else:
        config, checkpoint = factorise(dense, ranks, fit, folder)
    run(
        'tools/test.py', config, checkpoint, '--work-dir', folder / 'test',
        '--overwrite',
    )  # fmt: skip
    yield 0, scores(folder / 'test')[-1]
    if fit in TUNED:
        tuned = folder / 'tuned'
        changes = {**TEST, 'load_from': checkpoint}
        options = [f'{key}={value}' for key, value in changes.items()]
        run(
            'tools/train.py', config, '--work-dir', tuned, '--overwrite',
            '--cfg-options', *options,
        )  # fmt: skip
        for number, found in enumerate(scores(tuned)[-4:], 1):
            yield number * STEPS // 4, found


def table(rows):
    """Write mean AP ± standard deviation by steps of fine-tuning."""
    cells = pd.DataFrame(rows).groupby(['ranks', 'fit', 'steps'], sort=False)
    mean, std = cells['AP'].mean(), cells['AP'].std()
    text = [
        f'{m:.1f}' + (f' ± {s:.1f}' if s == s else '')
        for m, s in zip(mean, std, strict=True)
    ]
    wide = pd.Series(text, mean.index).unstack('steps').fillna('')
    wide = wide.reindex(mean.index.droplevel('steps').unique()).reset_index()
    names = ['ranks', 'fit', *(f'{n} steps' for n in wide.columns[2:])]
    return markdown_table([names, *wide.values.tolist()])


def main():
    """Measure what has no row yet; write the table of means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('dense_runs', type=Path)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = parser.parse_args()
    rows = pd.read_csv(ROWS).to_dict('records') if ROWS.is_file() else []
    done = {(row['seed'], row['ranks'], row['fit']) for row in rows}
    ways = [CONTROL, *itertools.product(RANKS, FITS)]
    for seed, (ranks, fit) in itertools.product(args.seeds, ways):
        if (seed, ranks, fit) in done:
            continue
        print(seed, ranks, fit, flush=True)
        dense = args.dense_runs / f'dense_seed-{seed}' / 'iter_800.pth'
        name = f'{seed}_{ranks}_{fit}'.replace(' ', '-').replace(',', '')
        folder = args.dense_runs.parent / 'bccd-uptrain' / name
        for steps, (ap, ap50, ap75) in measure(dense, ranks, fit, folder):
            rows.append(
                {
                    'seed': seed, 'ranks': ranks, 'fit': fit, 'steps': steps,
                    'AP': ap, 'AP50': ap50, 'AP75': ap75,
                }
            )  # fmt: skip
        order = {way: number for number, way in enumerate(ways)}
        rows.sort(key=lambda r: (r['seed'], order[r['ranks'], r['fit']]))
        atomic_write(ROWS, pd.DataFrame(rows).round(2).to_csv(index=False))
    marks = '<!-- bccd-uptrain -->\n', '<!-- end of bccd-uptrain -->'
    write_between_marks('docs/study.md', *marks, table(rows) + '\n')


if __name__ == '__main__':
    main()
