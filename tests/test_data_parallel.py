# SPDX-License-Identifier: Apache-2.0
"""Many processes compute what a single one computes."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.factories import build, detector_config, randomise
from helpers.forked import in_processes
from mmdet.evaluation import DumpDetResults
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.structures import InstanceData
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
NAME = 'lors-adamixer_mobilenetv2_bccd'

# Boxes of six images: more than there are queries, one, none. With two
# processes the second has a single box, with three the last has none.
COUNTS = (9, 0, 4, 1, 0, 0)
# Mode, numbers of boxes and of steps.
CASES = [*((mode, COUNTS, 2) for mode in MODES), ('lors', (0,) * 6, 1)]


def batch(counts: tuple[int, ...]) -> dict[str, list[Any]]:
    """Images of two sizes; of a group of processes, this one's share."""
    rng = np.random.default_rng(0)
    inputs, samples = [], []
    for index, count in enumerate(counts):
        h, w = (64, 96) if index % 2 else (60, 80)
        corners = np.sort(rng.random((count, 2, 2)), 1).reshape(count, 4)
        boxes = torch.tensor(corners * [w, h, w, h])
        labels = torch.from_numpy(rng.integers(0, 5, count))
        image = rng.integers(0, 256, (3, h, w), dtype=np.uint8)
        inputs.append(torch.from_numpy(image))
        samples.append(
            DetDataSample(
                metainfo={'img_shape': (h, w), 'scale_factor': (1.0, 1.0)},
                gt_instances=InstanceData(bboxes=boxes, labels=labels),
            )
        )
    number = len(counts) // get_world_size()
    part = slice(get_rank() * number, (get_rank() + 1) * number)
    return {'inputs': inputs[part], 'data_samples': samples[part]}


def detector(mode: str) -> Any:
    """In float64, so that nothing hides behind rounding."""
    torch.manual_seed(0)
    model = build(detector_config(mode)).train()
    randomise(model)
    model.data_preprocessor.register_forward_hook(
        lambda module, args, found: {
            **found, 'inputs': found['inputs'].double()
        }
    )  # fmt: skip
    return model.double()


def parallel(model: nn.Module) -> MMDistributedDataParallel:
    """As mmengine's runner wraps a model."""
    return MMDistributedDataParallel(model, broadcast_buffers=False)


def steps(mode: str, counts: tuple[int, ...], number: int) -> Any:
    """Losses and gradients of some steps, and the weights after them."""
    model = detector(mode)
    model = parallel(model) if dist.is_initialized() else model
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.1)
    losses, gradients = [], []
    optimizer.register_step_pre_hook(
        lambda *_: gradients.append([x.grad.clone() for x in weights])
    )
    for _ in range(number):
        found = model.train_step(batch(counts), OptimWrapper(optimizer))
        losses.append({k: v.item() for k, v in found.items() if 'loss' in k})
    return losses, gradients, [x.detach() for x in weights]


def all_steps(size: int) -> list[Any]:
    """With more than two processes, only of the mode that is the default."""
    return [steps(*case) for case in CASES if size == 2 or case[0] == 'lors']


@pytest.mark.slow
@pytest.mark.parametrize('size', [2, 3])
def test_processes_are_one(size: int) -> None:
    """Up to a constant that mmdet's losses add to their divisor.

    It is taken out; what is left is rounding, and AdamW's own epsilon, which
    does not scale with the gradient.
    """
    found = in_processes(size, all_steps, size)
    cases = [case for case in CASES if size == 2 or case[0] == 'lors']
    results = zip(cases, all_steps(size), *found, strict=True)
    for (_, counts, _), single, *others in results:
        losses, gradients, weights = single
        matched = max(1, sum(min(count, 7) for count in counts))  # 7 queries
        eps = torch.finfo(torch.float32).eps
        factor = (matched + eps) / (matched + size * eps)
        for number, expected in enumerate(losses):
            assert len(expected) == 3 * 3 + 1
            for name, value in expected.items():
                mean = np.mean([each[0][number][name] for each in others])
                assert mean == pytest.approx(factor * value, 1e-9, 1e-12), name
        for each in others:
            for step, expected in zip(each[1], gradients, strict=True):
                largest = max(x.abs().max().item() for x in expected)
                assert largest > 1e-3
                scaled = [factor * x for x in expected]
                torch.testing.assert_close(
                    step, scaled, rtol=0, atol=1e-8 * largest
                )
            torch.testing.assert_close(each[2], weights, rtol=0, atol=1e-8)
            # From process to process it is the same bit by bit.
            torch.testing.assert_close(each[2], others[0][2], rtol=0, atol=0)


def communicate() -> tuple[dict[str, Counter], list[int], int]:
    """Count messages, and bytes of gradients."""
    model, data = detector('lors'), batch(COUNTS)
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
    # The number of matched queries, and the gradients.
    assert found['step'] == {'all_reduce': 1 + len(sizes)}
    assert sum(sizes) == 8 * weights
    assert not found['prediction']


def detections(folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """AP numbers, and detections of one image after the other."""
    size = dist.get_world_size()
    cfg = Config.fromfile(ROOT / f'configs/bccd/{NAME}.py')
    cfg.model.backbone.init_cfg = None
    cfg.load_from = str(ROOT / f'demo/checkpoints/{NAME}.pth')
    cfg.launcher = 'pytorch'
    cfg.log_level = 'ERROR'
    cfg.work_dir = str(folder / str(size))
    cfg.model_wrapper_cfg = DDP
    loader, root = cfg.test_dataloader, ROOT / 'demo/bccd'
    loader.update(batch_size=1, num_workers=0, persistent_workers=False)
    loader.dataset.update(data_root=str(root), indices=7)
    cfg.test_evaluator.ann_file = str(root / loader.dataset.ann_file)
    runner = Runner.from_cfg(cfg)
    dump = folder / f'{size}.pkl'
    runner.test_evaluator.metrics.append(DumpDetResults(str(dump)))
    return runner.test(), pickle.loads(dump.read_bytes())


@pytest.mark.slow
def test_detections_and_ap_are_those_of_one_process(tmp_path: Path) -> None:
    """Seven images: one process has four, the other three."""
    ((numbers, expected),) = in_processes(1, detections, tmp_path)
    assert len(expected) == 7
    # The other 65 images of the file count as missed.
    assert 0.03 < numbers['coco/bbox_mAP'] < 0.9
    for found in in_processes(2, detections, tmp_path):
        assert found[0] == numbers
        assert_same_detections(found[1], expected)


def assert_same_detections(found: list[Any], expected: list[Any]) -> None:
    for mine, other in zip(found, expected, strict=True):
        assert mine['img_id'] == other['img_id']
        assert mine['pred_instances'].keys() == {'scores', 'labels', 'bboxes'}
        for key, value in mine['pred_instances'].items():
            assert torch.equal(value, other['pred_instances'][key])
