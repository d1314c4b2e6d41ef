# SPDX-License-Identifier: Apache-2.0
"""What users do with mmdet, done with our configs and bundled weights.

For training, a few queries and two iterations are enough.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_lines import ROOT, run_here, run_tool
from helpers.factories import build
from mmdet.apis import inference_detector, init_detector
from mmdet.evaluation import bbox_overlaps
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

CONFIG = ROOT / 'configs/bccd/lors-adamixer_mobilenetv2_bccd.py'
CHECKPOINT = ROOT / 'demo/checkpoints/lors-adamixer_mobilenetv2_bccd.pth'
IMAGES = ROOT / 'demo/bccd/images'
SHARED = 'decoder.mixing.out_proj.shared'
NAMES = (f'workflow{number}' for number in itertools.count())
QUICK = """
_base_ = '{config}'
experiment_name = '{name}'
visualizer = dict(name='{name}')
work_dir = '{folder}/work'
small = dict(
    num_workers=0,
    persistent_workers=False,
    batch_size=2,
    dataset=dict(ann_file='{folder}/few.json'),
)
train_dataloader, val_dataloader, test_dataloader = small, small, small
val_evaluator = dict(ann_file='{folder}/few.json')
test_evaluator = dict(ann_file='{folder}/few.json')
train_cfg = dict(max_iters=2, val_begin=9)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""


@pytest.fixture(scope='module')
def annotations() -> dict[str, Any]:
    """The first six test images with their boxes, as COCO."""
    file = ROOT / 'demo/bccd/annotations/instances_test.json'
    content = json.loads(file.read_text())
    content['images'] = content['images'][:6]
    ids = {image['id'] for image in content['images']}
    content['annotations'] = [
        box for box in content['annotations'] if box['image_id'] in ids
    ]
    return content


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, annotations: dict[str, Any]) -> Write:
    """A function that writes a config, based on ours by one for few images."""
    (tmp_path / 'few.json').write_text(json.dumps(annotations))

    def write(text: str = '') -> Path:
        quick, mine = tmp_path / 'quick.py', tmp_path / 'mine.py'
        names = {'config': CONFIG, 'folder': tmp_path, 'name': next(NAMES)}
        quick.write_text(QUICK.format(**names))
        mine.write_text("_base_ = './quick.py'" + text)
        return mine

    return write


LOG = """
model = dict(num_queries=8)
custom_hooks = [dict(type='Log')]
"""


class Log(Hook):
    """Collects what every iteration of training gives."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.shared: list[torch.Tensor] = []
        self.runner: Any = None

    def before_run(self, runner: Any) -> None:
        self.runner = runner

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any
    ) -> None:
        self.losses.append(outputs['loss'].item())
        self.shared.append(runner.model.state_dict()[SHARED].clone())


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """The log of the next training whose config has the hook ``Log``."""
    hook = Log()
    monkeypatch.setitem(HOOKS._module_dict, 'Log', lambda: hook)
    return hook


def metrics(folder: Path) -> dict[str, float]:
    """What the newest run in a folder has measured."""
    file = max(folder.rglob('20*_*.json'), key=lambda f: f.stat().st_mtime)
    return json.loads(file.read_text().splitlines()[-1])


def tool(name: str, *arguments: str | Path) -> str:
    """Run a tool of mmdet in a process of its own: some fork many more."""
    return run_tool('tools/mmdet_tool.py', name, *arguments)


def test_init_detector_and_inference_detector(
    annotations: dict[str, Any],
) -> None:
    """White cells are found where they are."""
    model = init_detector(str(CONFIG), str(CHECKPOINT), device='cpu')
    assert model.dataset_meta['classes'] == ('RBC', 'WBC', 'Platelets')
    names = {i['id']: i['file_name'] for i in annotations['images']}
    white = [b for b in annotations['annotations'] if b['category_id'] == 2]
    images = [str(IMAGES / names[box['image_id']]) for box in white]
    results = inference_detector(model, images)
    for box, result in zip(white, results, strict=True):
        found = result.pred_instances.numpy()
        found = found[(found.labels == 1) & (found.scores > 0.4)]
        x, y, width, height = box['bbox']
        truth = np.array([[x, y, x + width, y + height]], np.float32)
        assert bbox_overlaps(found.bboxes, truth).max() > 0.6


def test_test_time_augmentation(write: Write, tmp_path: Path) -> None:
    """With flipped images as well, the AP is another and about as good."""
    found = []
    for flags in ([], ['--tta']):
        tool('test', write(), CHECKPOINT, *flags)
        found.append(metrics(tmp_path)['coco/bbox_mAP'])
    assert found[0] != found[1]
    assert found[0] > 0.4
    assert found[1] == pytest.approx(found[0], abs=0.1)


def test_analysis_tools(write: Write, tmp_path: Path) -> None:
    """Each writes its pictures of what test.py has written."""
    json_file, pickle_file = tmp_path / 'a.bbox.json', tmp_path / 'a.pkl'
    prefix = f'test_evaluator.outfile_prefix={tmp_path}/a'
    run_here('tools/test.py', write(), CHECKPOINT, '--out', pickle_file,
             '--cfg-options', prefix)  # fmt: skip
    browsed, results, errors, matrix = (
        tmp_path / name for name in ('browsed', 'results', 'errors', 'matrix')
    )
    tool('analysis_tools/browse_dataset', write(), '--not-show',
         '--output-dir', browsed)  # fmt: skip
    tool('analysis_tools/analyze_results', write(), pickle_file, results,
         '--topk', '2')  # fmt: skip
    tool('analysis_tools/confusion_matrix', write(), pickle_file, matrix)
    tool('analysis_tools/coco_error_analysis', json_file, errors,
         '--ann', tmp_path / 'few.json')  # fmt: skip
    assert len(list(browsed.iterdir())) == 6  # images
    assert len(list((results / 'good').iterdir())) == 2
    assert len(list((results / 'bad').iterdir())) == 2
    assert (matrix / 'confusion_matrix.png').stat().st_size > 0
    assert len(list((errors / 'bbox').iterdir())) == 4 * 4  # classes and all


def test_get_flops(write: Write) -> None:
    """It counts all parameters."""
    output = tool('analysis_tools/get_flops', write(), '--num-images', '1')
    model = build(Config.fromfile(CONFIG).model)
    total = sum(p.numel() for p in model.parameters())
    assert f'Params: {total / 1e6:.3f}M' in output


def test_unknown_tool() -> None:
    with pytest.raises(SystemExit, match="no tool 'tset'; did you mean 'te"):
        run_here('tools/mmdet_tool.py', 'tset')


# Training ------------------------------------------------------------------


def train(config: Path, log: Log) -> Any:
    """Train for two iterations; the runner."""
    run_here('tools/train.py', config, '--overwrite')
    assert len(log.losses) == 2
    assert np.isfinite(log.losses).all()
    return log.runner


def test_ema(write: Write, log: Log, tmp_path: Path) -> None:
    """What is stored as the model is the mean of the steps' weights."""
    text = """
model = dict(num_queries=8)
custom_hooks = [dict(type='Log'), dict(type='EMAHook', momentum=0.25)]
optim_wrapper = dict(optimizer=dict(lr=1e-2))
param_scheduler = []
"""
    config = write(text)
    train(config, log)
    file = tmp_path / 'work/iter_2.pth'
    stored = torch.load(file, weights_only=False)
    mean = stored['state_dict'][SHARED]
    last = stored['ema_state_dict'][f'module.{SHARED}']
    # The mean begins with the weights of the first step.
    first, second = log.shared
    assert not torch.equal(first, second)
    assert torch.equal(second, last)
    torch.testing.assert_close(mean, 0.75 * first + 0.25 * last)
    run_here('tools/test.py', config, file, '--overwrite')


def test_tensorboard(write: Write, log: Log, tmp_path: Path) -> None:
    """With the documents' settings the AP is at the step of its iteration."""
    page = (ROOT / 'docs/analysis.md').read_text()
    settings = re.search(r'^visualizer = .*?^```$', page, re.M | re.S)[0][:-3]
    settings += f"visualizer['name'] = '{next(NAMES)}'\n"
    train(write(LOG + settings + 'train_cfg = dict(val_begin=2)\n'), log)
    (file,) = (tmp_path / 'work').rglob('events.*')
    events = EventAccumulator(str(file))
    events.Reload()
    assert [each.step for each in events.Scalars('loss')] == [1, 2]
    assert [each.step for each in events.Scalars('coco/bbox_mAP')] == [2]


IN_OTHERS = {
    'ConcatDataset': ('datasets=[few, few]', 12),
    'RepeatDataset': ('dataset=few, times=2', 12),
    'ClassBalancedDataset': ('dataset=few, oversample_thr=0.9', 9),
    'MultiImageMixDataset': ("""
        dataset=few,
        pipeline=[
            dict(type='Mosaic', img_scale=(96, 128)),
            dict(type='Resize', scale=(128, 96), keep_ratio=True),
            dict(type='PackDetInputs'),
        ],""", 6),
}  # fmt: skip


@pytest.mark.parametrize('kind', IN_OTHERS)
def test_data_set_in_another(
    write: Write, log: Log, tmp_path: Path, kind: str,
    annotations: dict[str, Any],
) -> None:  # fmt: skip
    """The first image is missing: another is taken, and the log says so."""
    first, *others = annotations['images']
    images = [{**first, 'file_name': 'none.jpg'}, *others]
    content = {**annotations, 'images': images}
    (tmp_path / 'few.json').write_text(json.dumps(content))
    arguments, size = IN_OTHERS[kind]
    text = f"""
few = _base_.train_dataloader.dataset
if {kind == 'MultiImageMixDataset'}:
    few.pipeline = few.pipeline[:2]  # load images and boxes
train_dataloader = dict(
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(_delete_=True, type='{kind}', {arguments}),
)
"""
    runner = train(write(LOG + text), log)
    assert len(runner.train_dataloader.dataset) == size
    (file,) = (tmp_path / 'work').rglob('*.log')
    line = 'missing image, replaced in training'
    assert file.read_text().count(line) == 1


def test_voc(
    write: Write, log: Log, tmp_path: Path, annotations: dict[str, Any]
) -> None:
    write_voc(tmp_path, annotations)
    text = """
voc = dict(
    _delete_=True,
    type='VOCDataset',
    data_root='{folder}',
    ann_file='few.txt',
    data_prefix=dict(sub_data_root='{folder}'),
    metainfo=_base_.dataset.metainfo,
)
train_dataloader = dict(
    dataset=dict(pipeline=_base_.train_pipeline, **voc)
)
test_dataloader = dict(
    dataset=dict(pipeline=_base_.test_pipeline, test_mode=True, **voc)
)
val_dataloader = test_dataloader
val_evaluator = dict(_delete_=True, type='VOCMetric')
test_evaluator = val_evaluator
"""
    text = text.format(folder=tmp_path)
    train(write(LOG + text), log)
    run_tool('tools/test.py', write(text), CHECKPOINT)  # it forks, too
    assert metrics(tmp_path)['pascal_voc/mAP'] > 0.7


def write_voc(folder: Path, annotations: dict[str, Any]) -> None:
    """Write COCO's annotations as Pascal VOC's, with links to the images."""
    classes = {c['id']: c['name'] for c in annotations['categories']}
    for name in ('Annotations', 'JPEGImages'):
        (folder / name).mkdir()
    for image in annotations['images']:
        text = '<size><width>{width}</width><height>{height}</height></size>'
        text = text.format(**image)
        for box in annotations['annotations']:
            if box['image_id'] == image['id']:
                x, y, width, height = box['bbox']
                text += (
                    f'<object><name>{classes[box["category_id"]]}</name>'
                    f'<bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>'
                    f'<xmax>{x + width + 1}</xmax>'
                    f'<ymax>{y + height + 1}</ymax></bndbox></object>'
                )
        file = Path(image['file_name'])
        xml = folder / 'Annotations' / file.with_suffix('.xml')
        xml.write_text(f'<annotation>{text}</annotation>')
        (folder / 'JPEGImages' / file).symlink_to(IMAGES / file)
    names = [Path(i['file_name']).stem for i in annotations['images']]
    (folder / 'few.txt').write_text('\n'.join(names))
