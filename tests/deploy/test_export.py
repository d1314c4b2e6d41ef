# SPDX-License-Identifier: Apache-2.0
"""Exported files: what is in them, what they find, and how they are used."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from helpers.command_lines import ROOT, run_here
from helpers.factories import build, decoder_config, detector_config
from mmengine.config import Config

from lors_det.adamixer.postprocess import best_pairs
from lors_det.analysis.trace import trace_exported
from lors_det.deploy import parity
from lors_det.deploy.export import export_detector
from lors_det.deploy.runtime import Detector
from lors_det.errors import UsageError
from lors_det.predict import Predictor

from .conftest import Export, checkpoint, config, reference

CONFIG = 'configs/bccd/{}_mobilenetv2_bccd.py'
LORS, DENSE = 'lors-adamixer', 'adamixer'
IMAGES = sorted((ROOT / 'demo/bccd/images').glob('*.jpg'))[:3]


def weights(path: Path) -> dict[str, tuple[int, ...]]:
    graph = onnx.load(path).graph
    return {each.name: tuple(each.dims) for each in graph.initializer}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('form', 'with_ap'),
    [
        (('onnx', 'float32', False), True),
        (('openvino', 'float16', True), False),
    ],
)
def test_finds_what_torch_finds(
    form: tuple[Any, ...], with_ap: bool, exported: Export
) -> None:
    """On photographs, in batches of three sizes; by AP, which takes longer."""
    path = exported(LORS, *form).path
    findings = reference(LORS).check(Predictor(config(LORS), path))
    found = [*islice(findings, 6 + with_ap)]
    assert len(found) == 6 + with_ap
    assert all(finding.passed for finding in found), found
    assert 'AP 46.1' in found[-1].text or not with_ap


def test_int8(exported: Export) -> None:
    """A third of the file, and an AP within a point."""
    summary = exported(LORS, 'onnx', 'int8')
    assert summary.size < 0.35 * exported(LORS, 'onnx').size
    findings = reference(LORS).check(Predictor(config(LORS), summary.path))
    assert all(finding.passed for finding in findings)


def test_another_detector_is_found_out(exported: Export) -> None:
    other = Predictor(config(DENSE), exported(LORS, 'onnx').path)
    assert not next(reference(DENSE).check(other)).passed


def test_graph(exported: Export) -> None:
    """Standard operators of opset 17, sizes free, each weight once."""
    summary = exported(LORS, 'onnx')
    model = onnx.load(summary.path)
    assert [(each.domain, each.version) for each in model.opset_import] == [
        ('', 17)
    ]
    operators = Counter(node.op_type for node in model.graph.node)
    assert summary.nodes == operators.total()
    # Six norms of every stage, that of the last class branch and the queries'.
    assert operators['LayerNormalization'] == 6 * 6 + 2
    unwanted = r'GridSample|.*Sequence.*|Loop|If|Scan|Optional.*'
    assert not [name for name in operators if re.fullmatch(unwanted, name)]
    shapes = [
        [
            dim.dim_param or dim.dim_value
            for dim in each.type.tensor_type.shape.dim
        ]
        for each in model.graph.input
    ]
    assert shapes == [['batch', 3, 'height', 'width'], ['batch', 2]]


def test_shared_weights_are_stored_once(exported: Export) -> None:
    """The size of the file shows what LORS saves."""
    lors = exported(LORS, 'onnx')
    state = reference(LORS).predictor.model.state_dict()
    numbers = sum(value.numel() for value in state.values())
    stored = sum(int(np.prod(dims)) for dims in weights(lors.path).values())
    assert stored <= numbers
    assert lors.size < 4.4 * numbers  # the rest is the graph
    shared = [name for name in weights(lors.path) if 'shared' in name]
    assert len(shared) == 5  # of three stacks, two of them with a bias
    dense = reference(DENSE).predictor.model.state_dict()
    assert lors.size < 0.8 * 4 * sum(value.numel() for value in dense.values())
    assert lors.other_size > 1.4 * lors.size


def test_program_of_torch(tmp_path: Path) -> None:
    """A small detector as .pt2, in half precision, folded and not."""
    cfg = Config(config(LORS).to_dict())
    stacks = {'mixing_kernels': {'mode': 'lors', 'rank': 2}}
    decoder = decoder_config(num_classes=3, num_stages=1, stacks=stacks)
    decoder['type'] = 'AdaMixerDecoder'
    cfg.model = detector_config(decoder=decoder)
    torch.manual_seed(0)
    model = build(cfg.model)
    for parameter in model.decoder.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'small.pth')
    predictor = Predictor(cfg, tmp_path / 'small.pth', 'cpu')
    summary = export_detector(
        predictor, tmp_path / 'small.pt2', 'torch', 'float16'
    )
    assert summary.folded
    with pytest.raises(UsageError, match=r'small.pt2: a .pt2 file may run co'):
        Predictor(cfg, summary.path)
    other = Predictor(cfg, summary.path, trust=True)
    for one, two in zip(predictor(IMAGES, 2), other(IMAGES, 3), strict=True):
        ours, theirs = one.pred_instances, two.pred_instances
        torch.testing.assert_close(
            ours.scores, theirs.scores, atol=2e-3, rtol=0
        )


@pytest.mark.slow
def test_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """tools/export.py, whose check fails; tools/test.py on what it wrote."""
    out = tmp_path / 'model.onnx'
    finding = parity.Finding('batch 1', 'logits 1', False)
    monkeypatch.setattr(parity.Reference, 'check', lambda *_: [finding])
    with pytest.raises(SystemExit, match='does not find what the detector'):
        run_here(
            'tools/export.py', CONFIG.format(LORS), checkpoint(LORS), '--out',
            out, '--with-postprocess', '--dtype', 'float16', '--check',
        )  # fmt: skip
    printed = capsys.readouterr().out
    assert 'batch 1: logits 1 -- too far' in printed
    assert 'inputs images, sizes, scales; outputs boxes, scores, la' in printed
    assert re.search(r'6\.\d MB, weights of the stages shared once', printed)
    (sample,) = reference(LORS).predictor(IMAGES[0])
    (found,) = Detector(out)([cv2.imread(str(IMAGES[0]))])
    wanted = sample.pred_instances.numpy()
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-2)
    sure = wanted.scores > 0.3
    np.testing.assert_allclose(
        found.boxes[sure], wanted.bboxes[sure], atol=0.5
    )
    results = tmp_path / 'found.bbox.json'
    run_here(
        'tools/test.py', CONFIG.format(LORS), out, '--work-dir', tmp_path,
        '--out', results, '--cfg-options', 'test_dataloader.dataset.indices=3',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    )  # fmt: skip
    found = json.loads(results.read_text())
    assert len(found) == 3 * 60
    ids = [*dict.fromkeys(each['image_id'] for each in found)]
    truth = json.loads(
        (ROOT / 'demo/bccd/annotations/instances_test.json').read_text()
    )
    names = {each['id']: each['file_name'] for each in truth['images']}
    paths = [ROOT / 'demo/bccd/images' / names[each] for each in ids]
    samples = reference(LORS).predictor(paths)
    for number, sample in zip(ids, samples, strict=True):
        scores = [e['score'] for e in found if e['image_id'] == number]
        np.testing.assert_allclose(
            sorted(scores, reverse=True), sample.pred_instances.scores,
            atol=1e-3,
        )  # fmt: skip


def test_in_the_app(exported: Export) -> None:
    """One stage, whose best pairs are the detections."""
    predictor = Predictor(config(LORS), exported(LORS, 'onnx').path)
    (sample,) = predictor(IMAGES[0])
    trace = trace_exported(predictor, IMAGES[0])
    (stage,) = trace.stages
    scores, labels, queries = best_pairs(stage.scores[None], len(trace.scores))
    found = sample.pred_instances
    assert len(found) == 60
    torch.testing.assert_close(scores[0], found.scores)
    sure = found.scores > 0.3
    torch.testing.assert_close(labels[0][sure], found.labels[sure])
    boxes = stage.after[queries[0]]
    torch.testing.assert_close(boxes[sure], found.bboxes[sure])
    assert stage.points[queries[0]].numel() == 0


def changed(scale: tuple[int, int]) -> Config:
    """The config with another size of its images."""
    cfg = Config(config(LORS).to_dict())
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = scale
    return cfg


def test_of_another_config(exported: Export) -> None:
    path = exported(LORS, 'onnx').path
    message = r'onnx: was exported from another config: its scale is \[256, 19'
    with pytest.raises(UsageError, match=message):
        Predictor(changed((320, 240)), path)
    cfg = Config(config(LORS).to_dict())
    cfg.model.decoder.num_classes = 7
    with pytest.raises(UsageError, match='its num_classes is 3, that of CONF'):
        Predictor(cfg, path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'type': 'Resize', 'scale_factor': 0.5}, 'CONFIG: test_pipeline has'),
        ({'type': 'Pad', 'size_divisor': 32}, 'CONFIG: test_pipeline has Pad'),
    ],
)
def test_steps_that_the_runtime_lacks(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    predictor = reference(LORS).predictor
    cfg, before = Config(config(LORS).to_dict()), predictor.config
    cfg.test_dataloader.dataset.pipeline[1] = change
    predictor.config = cfg
    try:
        with pytest.raises(UsageError, match=message):
            export_detector(predictor, tmp_path / 'x.onnx', 'onnx')
    finally:
        predictor.config = before


def test_a_package_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, 'openvino', None)
    message = r"needs the package openvino: pip install 'lors_det\[openvino\]'"
    with pytest.raises(UsageError, match=message):
        export_detector(
            reference(LORS).predictor, tmp_path / 'x.xml', 'openvino'
        )


def test_damaged_files(exported: Export, tmp_path: Path) -> None:
    whole = exported(LORS, 'onnx').path
    path = tmp_path / 'model.onnx'
    path.write_bytes(whole.read_bytes()[:500_000])
    with pytest.raises(UsageError, match=r'model.onnx: no ONNX model, or cut'):
        Predictor(config(LORS), path)
    model = onnx.load(whole)
    meta = json.loads(model.metadata_props[0].value)
    for text, message in (
        (
            json.dumps({**meta, 'format': 99}),
            r'of another version, lors_det 0',
        ),
        ('', 'not written by tools/export.py'),
    ):
        model.metadata_props[0].value = text
        onnx.save(model, path)
        with pytest.raises(UsageError, match=message):
            Predictor(config(LORS), path)
    xml = exported(LORS, 'openvino', 'float16', True).path
    shutil.copy(xml, tmp_path / 'model.xml')
    with pytest.raises(UsageError, match=r'model.bin does not exist'):
        Predictor(config(LORS), tmp_path / 'model.xml')
    content = xml.with_suffix('.bin').read_bytes()
    (tmp_path / 'model.bin').write_bytes(content[:1000])
    with pytest.raises(UsageError, match=r'no model of OpenVINO, or it or'):
        Predictor(config(LORS), tmp_path / 'model.xml')
    (tmp_path / 'model.pt2').write_bytes(b'PK\x03\x04 and no more')
    with pytest.raises(UsageError, match=r'model.pt2 is damaged or cut off'):
        Predictor(config(LORS), tmp_path / 'model.pt2', trust=True)


def test_options_that_do_not_fit(exported: Export, tmp_path: Path) -> None:
    path = exported(LORS, 'onnx').path
    predictor = Predictor(config(LORS), path)
    samples = predictor._prepare(
        {'img': np.zeros((9, 9, 3), np.uint8), 'img_id': 0}
    )
    with pytest.raises(UsageError, match='expected sides divisible by 32'):
        predictor.model.outputs(
            torch.zeros(1, 3, 100, 128), [samples['data_samples']]
        )
    with pytest.raises(UsageError, match='--device cuda:0: exported files ru'):
        Predictor(config(LORS), path, 'cuda:0')
    with pytest.raises(UsageError, match='--dtype bfloat16: the type of an e'):
        Predictor(config(LORS), path, dtype='bfloat16')
    with pytest.raises(
        SystemExit, match=r'error: CHECKPOINT: .*: the stages o'
    ):
        run_here('tools/explain.py', CONFIG.format(LORS), path, IMAGES[0])
    ours = reference(LORS).predictor
    with pytest.raises(UsageError, match=r'expected a name ending in .onnx'):
        export_detector(ours, tmp_path / 'model.bin', 'onnx')
    with pytest.raises(UsageError, match=r'--dtype int8: expected float32 or'):
        export_detector(ours, tmp_path / 'model.pt2', 'torch', 'int8')
