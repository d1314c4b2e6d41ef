# SPDX-License-Identifier: Apache-2.0
"""The bundled detectors, each exported once in every form that is tested."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from helpers.command_lines import ROOT
from mmengine.config import Config

from lors_det.deploy.export import Summary, export_detector
from lors_det.deploy.formats import FORMATS
from lors_det.deploy.parity import Reference
from lors_det.predict import Predictor

Export = Callable[..., Summary]


@cache
def config(name: str) -> Config:
    """A bundled config; its data are found from any folder."""
    cfg = Config.fromfile(ROOT / f'configs/bccd/{name}_mobilenetv2_bccd.py')
    for split in ('val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.data_root = f'{ROOT}/demo/bccd/'
    cfg.model.backbone.init_cfg = None
    return cfg


@cache
def reference(name: str) -> Reference:
    """A bundled detector, which measures its AP once."""
    return Reference(Predictor(config(name), checkpoint(name), 'cpu'))


def checkpoint(name: str) -> Path:
    return ROOT / f'demo/checkpoints/{name}_mobilenetv2_bccd.pth'


@pytest.fixture(scope='session')
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Write a bundled detector, or return what was written before."""
    folder = tmp_path_factory.mktemp('exported')

    @cache
    def once(name: str, file_format: str, dtype: str, post: bool) -> Summary:
        path = folder / f'{name}_{dtype}_{post}{FORMATS[file_format][0]}'
        predictor = reference(name).predictor
        return export_detector(
            predictor, path, file_format, dtype, with_postprocess=post
        )

    def write(
        name: str, file_format: str, dtype: str = 'float32', post: bool = False
    ) -> Summary:
        return once(name, file_format, dtype, post)  # one key for the cache

    return write
