# SPDX-License-Identifier: Apache-2.0
"""Behind tools/uptrain.py: a dense checkpoint becomes one of LORS."""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import Tensor

from lors_det.adamixer.allocate import (
    allocate_ranks,
    count_decoder,
    lowest_stacks,
)
from lors_det.adamixer.decoder import AdaMixerDecoder
from lors_det.adamixer.factorise import factorise_decoder, stacks_of
from lors_det.analysis.tables import ascii_table
from lors_det.cli.boundary import OneLineErrors
from lors_det.cli.checks import check_dataset
from lors_det.errors import UsageError
from lors_det.files import atomic_write, check_file, check_output, load_config
from lors_det.hooks.checkpoint import load_strictly
from lors_det.lors import (
    FitReport,
    StackConfig,
    count_parameters,
    record_inputs,
)
from lors_det.lors.stacks import Stack
from lors_det.safe_load import load_checkpoint, save_checkpoint

#: Of one weight and stage, over all images: more of them make the second
#: moment of a large input (32,768 for the output projection) too expensive.
MAX_INPUTS = 1024
MAX_ITERS = 10
#: A decoder that was factorised, and the errors of its stacks.
Fit = tuple[AdaMixerDecoder, dict[str, FitReport]]


def uptrain(args: argparse.Namespace, errors: OneLineErrors) -> None:
    """Factorise a dense detector, and write what fine-tuning starts from.

    Args:
        args: Parsed arguments of tools/uptrain.py.
        errors: Learns what the config is.

    Raises:
        UsageError: If a file is missing or does not fit, the budget is too
            small, or something would be overwritten.
    """
    if args.images < 0:
        raise UsageError(f'--images {args.images}: expected 0 or more')
    cfg = errors.cfg = load_config(args.config)
    stacks = _stacks(cfg, args.config)
    out = Path(args.out or Path('work_dirs', Path(args.config).stem, 'lors'))
    if not args.overwrite:
        check_output(str(out), '--out')
    check_file(args.dense, 'DENSE')
    if args.images:
        check_dataset(cfg, 'train')
    settings = {**cfg.model.decoder, 'stacks': stacks}
    budget = count_decoder(settings) if args.budget is None else args.budget
    lowest = count_decoder({**settings, 'stacks': lowest_stacks(stacks)})
    if budget < lowest:
        raise UsageError(
            f'--budget {budget}: expected at least {lowest}, the decoder with '
            'the lowest ranks'
        )
    model = build_dense(cfg)
    checkpoint = load_checkpoint(args.dense, trust=args.trust)
    load_strictly(model, checkpoint, args.dense, 'test')
    inputs = _record(model, cfg, stacks, args.images) if args.images else None
    errors.first_batch_done = True  # the settings have proved to work

    def fit(stacks: Mapping[str, Any], max_iters: int = MAX_ITERS) -> Fit:
        decoder = copy.deepcopy(model.decoder)
        return decoder, factorise_decoder(
            decoder, stacks, max_iters, inputs=inputs
        )

    fits = {'given': fit(stacks)}
    if not args.given:
        # With the shared part that no choice of ranks has influenced yet.
        _, start = fit(stacks, max_iters=0)
        stacks = allocate_ranks(settings, start, budget)
        fits['allocated'] = fit(stacks)
    print(_table(fits))
    model.decoder, _ = [*fits.values()][-1]
    _write(model, checkpoint, args.config, stacks, out)


def build_dense(cfg: Config) -> Any:
    """Build the dense counterpart of a detector.

    Args:
        cfg: The config of a detector of this project.
    """
    settings = copy.deepcopy(cfg.model)
    settings.decoder.stacks = {}
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    return MODELS.build(settings).to(get_device()).eval()


@torch.no_grad()
def _record(
    model: Any, cfg: Config, stacks: Mapping[str, Any], images: int
) -> dict[str, list[Tensor]]:
    """Record what the stacks of a dense decoder are given on training images.

    See `record_inputs`; at most about `MAX_INPUTS` of a layer.
    """
    set_random_seed(0)
    loader_cfg = copy.deepcopy(cfg.train_dataloader)
    loader_cfg.update(num_workers=0, persistent_workers=False)
    loader_cfg.batch_size = min(loader_cfg.batch_size, images)
    calls = math.ceil(images / loader_cfg.batch_size)
    loader = Runner.build_dataloader(loader_cfg, seed=0)
    found = {
        name: module
        for name, module in model.decoder.named_modules()
        if isinstance(module, Stack)
    }
    found = {n: found[n] for step in stacks for n in stacks_of(step, found)}
    with record_inputs(found, math.ceil(MAX_INPUTS / calls)) as inputs:
        for batch in itertools.islice(loader, calls):
            model(**model.data_preprocessor(batch, False), mode='tensor')
    return inputs


def _table(fits: Mapping[str, Fit]) -> str:
    """Compare fits, stack by stack, and all stacks of each in a line."""
    rows = [['stack', 'ranks', 'of the stages', 'private', 'relative error']]
    for name in fits['given'][1]:
        for choice, (decoder, reports) in fits.items():
            counted = count_parameters(decoder.get_submodule(name))
            ranks = ', '.join(reports[name].ranks)
            error = f'{_mean(reports[name].errors):.4f}'
            rows.append([name, choice, ranks, f'{counted.private:,}', error])
    lines = [ascii_table(rows)]
    for choice, (decoder, reports) in fits.items():
        total = sum(p.numel() for p in decoder.parameters())
        all_errors = [e for r in reports.values() for e in r.errors]
        lines.append(
            f'{choice} ranks: {total:,} parameters in the decoder, relative '
            f'error {_mean(all_errors):.4f}'
        )
    return '\n'.join(lines)


def _write(
    model: Any,
    checkpoint: Mapping[str, Any],
    config: str,
    stacks: Mapping[str, Any],
    out: Path,
) -> None:
    """Write a checkpoint and its config, and print how to go on."""
    meta = checkpoint.get('meta') or {}
    meta = {k: v for k, v in meta.items() if k == 'dataset_meta'}
    state = {k: v.cpu().contiguous() for k, v in model.state_dict().items()}
    weights, file = out / 'lors.pth', out / 'lors.py'
    save_checkpoint(state, meta, weights)
    decoder = {'stacks': stacks}
    changes = Config(
        {'model': {'decoder': decoder}, 'load_from': str(weights)}
    )
    base = os.path.relpath(config, out)
    atomic_write(file, f'_base_ = {base!r}\n{changes.pretty_text}')
    print(f'written: {weights}, {file}; to fine-tune it:')
    print(f'python tools/train.py {file}')


def _stacks(cfg: Config, name: str) -> dict[str, dict[str, Any]]:
    """Return the stacks of a config that are not dense, by their step."""
    model: Any = cfg.get('model') or {}
    if model.get('type') != 'AdaMixer':
        raise UsageError(
            f"{name}: model.type={model.get('type')!r}: expected 'AdaMixer'"
        )
    stacks = {}
    for step, each in (model.decoder.get('stacks') or {}).items():
        config = StackConfig.parse(each, f'decoder.stacks.{step}')
        if config.mode != 'dense':
            stacks[step] = asdict(config)
    if not stacks:
        raise UsageError(
            f'{name}: model.decoder.stacks has dense weights only: expected '
            "the config of LORS, with stacks in the mode 'lors'"
        )
    return stacks


def _mean(errors: Sequence[float]) -> float:
    """Return the root of the mean square."""
    return math.sqrt(sum(e**2 for e in errors) / len(errors))
