# SPDX-License-Identifier: Apache-2.0
"""Many processes compute what a single one computes."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.factories import build, decoder_config, detector_config, randomise
from helpers.forked import in_processes
from helpers.parallel_steps import (
    COUNTS,
    EMPTY,
    assert_equal,
    batch,
    detector,
    share,
    steps,
)
from mmdet.evaluation import DumpDetResults
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.communication import count_bytes
from lors_det.lors import MODES

ROOT = Path(__file__).parents[1]
DDP = {
    'type': 'MMDistributedDataParallel',
    'broadcast_buffers': False,
    'device_ids': None,
}
SMALL = detector_config(
    decoder={'type': 'AdaMixerDecoder', **decoder_config(num_classes=80)}
)


def parallel(model: nn.Module) -> MMDistributedDataParallel:
    """As mmengine's runner wraps a model."""
    return MMDistributedDataParallel(model, broadcast_buffers=False)


def cases(size: int) -> list[tuple[str, tuple[int, ...], int]]:
    """Modes, numbers of boxes, and steps that some processes try."""
    modes = MODES if size == 2 else ('lors',)
    return [*((mode, COUNTS, 2) for mode in modes), ('lors', EMPTY, 1)]


def parallel_steps() -> list[Any]:
    found = []
    size = dist.get_world_size()
    for mode, counts, number in cases(size):
        model = parallel(detector(mode))
        if size == 3:  # counting changes nothing
            count_bytes(model)
        found.append(steps(model, share(batch(counts)), number))
    return found


@cache
def single_steps(mode: str, counts: tuple[int, ...], number: int) -> Any:
    return steps(detector(mode), batch(counts), number)


@pytest.fixture(scope='module')
def results() -> dict[int, list[Any]]:
    """What each of two, and each of three processes finds."""
    return {size: in_processes(size, parallel_steps) for size in (2, 3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('size', 'case'), [(n, i) for n in (2, 3) for i in range(len(cases(n)))]
)
def test_processes_are_one(
    size: int, case: int, results: dict[int, list[Any]]
) -> None:
    found = [process[case] for process in results[size]]
    _, counts, _ = arguments = cases(size)[case]
    assert_equal(found, single_steps(*arguments), counts)


def communicate() -> tuple[dict[str, Counter], list[int], int]:
    """Count messages, and bytes of gradients."""
    model, data = detector('lors'), share(batch(COUNTS))
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters()))
    found = {}

    def note(name: str, call: Any, *args: Any) -> Any:
        if dist.get_rank():
            return call(*args)
        with profile(activities=[ProfilerActivity.CPU]) as record:
            result = call(*args)
        found[name] = Counter(
            event.name.removeprefix('gloo:')
            for event in record.events()
            if event.name.startswith('gloo:')
        )
        return result

    model = note('start', parallel, model)
    sizes = count_bytes(model)
    for _ in range(2):
        model.train_step(data, wrapper)
    sizes.clear()
    note('step', model.train_step, data, wrapper)
    with torch.no_grad():
        note('prediction', model.eval().test_step, data)
    return found, sizes, sum(x.numel() for x in model.parameters())


def test_what_processes_send_each_other() -> None:
    (found, sizes, weights), _ = in_processes(2, communicate)
    # Weights, and the moments of batch norms; then the shapes.
    assert found['start'] == {'broadcast': 2, 'all_gather': 1}
    # The matched queries of three stages, and the gradients.
    assert found['step'] == {'all_reduce': 3 + len(sizes)}
    assert sum(sizes) == 8 * weights
    assert not found['prediction']


def detections(folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """AP numbers, and detections of one image after the other."""
    size = dist.get_world_size()
    cfg = Config.fromfile(ROOT / 'configs/demo/lors-adamixer_r18_coco-tiny.py')
    cfg.model = SMALL
    cfg.launcher = 'pytorch'
    cfg.log_level = 'ERROR'
    cfg.load_from = str(folder / 'weights.pth')
    cfg.work_dir = str(folder / str(size))
    cfg.model_wrapper_cfg = DDP
    cfg.test_evaluator.ann_file = str(folder / 'coco.json')
    cfg.test_dataloader.num_workers = 0
    cfg.test_dataloader.persistent_workers = False
    cfg.test_dataloader.dataset.ann_file = cfg.test_evaluator.ann_file
    cfg.test_dataloader.dataset.data_root = str(ROOT / 'demo/coco_tiny')
    runner = Runner.from_cfg(cfg)
    dump = folder / f'{size}.pkl'
    runner.test_evaluator.metrics.append(DumpDetResults(str(dump)))
    return runner.test(), pickle.loads(dump.read_bytes())


@pytest.mark.slow
def test_detections_and_ap_are_those_of_one_process(tmp_path: Path) -> None:
    """Seven images: one process has four, the other three."""
    annotations = ROOT / 'demo/coco_tiny/annotations/instances_train.json'
    truth = json.loads(annotations.read_text())
    truth['images'] = truth['images'][:7]
    truth['annotations'] = []
    truth_file = tmp_path / 'coco.json'
    truth_file.write_text(json.dumps(truth))
    model = build(SMALL)
    randomise(model)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
    ((_, expected),) = in_processes(1, detections, tmp_path)
    assert len(expected) == 7

    # The truth becomes some of the detections, shifted: AP is not 0 then.
    for image in expected:
        found = image['pred_instances']
        for rank in (0, 3, 4):
            x1, y1, x2, y2 = found['bboxes'][rank].tolist()
            shift = rank * (x2 - x1) / 20
            category = truth['categories'][found['labels'][rank]]
            truth['annotations'].append(
                {
                    'id': len(truth['annotations']) + 1,
                    'image_id': image['img_id'],
                    'category_id': category['id'],
                    'bbox': [x1 + shift, y1, x2 - x1, y2 - y1],
                    'area': (x2 - x1) * (y2 - y1),
                    'iscrowd': 0,
                }
            )
    truth_file.write_text(json.dumps(truth))
    ((numbers, again),) = in_processes(1, detections, tmp_path)
    assert_same_detections(again, expected)
    assert 0.1 < numbers['memorised/bbox_mAP'] < 0.9
    for found in in_processes(2, detections, tmp_path):
        assert found[0] == numbers
        assert_same_detections(found[1], expected)


def assert_same_detections(found: list[Any], expected: list[Any]) -> None:
    for mine, other in zip(found, expected, strict=True):
        assert mine['img_id'] == other['img_id']
        assert mine['pred_instances'].keys() == {'scores', 'labels', 'bboxes'}
        for key, value in mine['pred_instances'].items():
            assert torch.equal(value, other['pred_instances'][key])
