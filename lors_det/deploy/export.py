# SPDX-License-Identifier: Apache-2.0
"""Write a detector as ONNX, OpenVINO or a torch.export program."""

from __future__ import annotations

import copy
import io
import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from lors_det.adamixer import AdaMixer
from lors_det.adamixer.postprocess import select_topk
from lors_det.adamixer.sampling import AdaptiveSampling
from lors_det.deploy.formats import (
    FORMATS,
    describe_preprocessing,
    import_extra,
)
from lors_det.deploy.runtime import META_FORMAT, META_KEY
from lors_det.errors import UsageError
from lors_det.files import atomic_write
from lors_det.lors import fold
from lors_det.lors.stacks import Stack
from lors_det.predict import Predictor
from lors_det.version import __version__

#: The first opset in which LayerNormalization is one node.
OPSET = 17
#: Bytes of a stored weight, by its type.
DTYPES = {'float32': 4, 'float16': 2, 'int8': 1}
#: Smaller weights stay float32 where others become int8.
MIN_INT8_SIZE = 1024


class Summary(NamedTuple):
    """Summary of an exported file.

    Args:
        path: The file.
        size: Bytes of the file, and of the weights beside it.
        folded: Whether the stacks were folded.
        other_size: About what the size would be if not, or if so.
        nodes: Number of nodes of the graph.
        inputs: Their names.
        outputs: Their names.
    """

    path: Path
    size: int
    folded: bool
    other_size: int
    nodes: int
    inputs: list[str]
    outputs: list[str]


class Graph(nn.Module):
    """Map prepared images to logits and boxes, or to detections.

    Args:
        model: The detector; it is changed.
        with_postprocess: Whether to end in the top k detections.
    """

    def __init__(self, model: AdaMixer, with_postprocess: bool) -> None:
        super().__init__()
        for module in model.modules():
            if isinstance(module, Stack):
                module.always_sum = True
        self.model = model
        self.inputs = ['images', 'sizes']
        self.outputs = ['logits', 'boxes']
        if with_postprocess:
            self.inputs = ['images', 'sizes', 'scales']
            self.outputs = ['boxes', 'scores', 'labels']

    def forward(
        self, images: Tensor, sizes: Tensor, scales: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            images: (B, 3, H, W) normalised and padded, float32.
            sizes: (B, 2) width and height in pixels without the padding.
            scales: (B, 2), these over the original ones, for post-processing.

        Returns:
            (B, N, classes) logits and (B, N, 4) boxes in pixels of the
            resized images; with post-processing (B, K, 4) boxes in pixels of
            the original images, (B, K) scores and (B, K) labels.
        """
        last = self.model.decode(images, sizes)[-1]
        if scales is None:
            return last.cls_logits, last.bboxes
        scores, labels, boxes = select_topk(last, self.model.max_per_img)
        return boxes / scales.repeat(1, 2)[:, None], scores, labels


class HalfWeights(nn.Module):
    """A module whose weights are stored in half precision, and no more.

    Args:
        module: What computes, in float32; it is changed.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.half()

    def forward(self, *inputs: Tensor) -> Any:
        """Run the module in float32.

        Args:
            inputs: Those of the module.
        """
        module = self.module
        state = {
            **dict(module.named_parameters()),
            **dict(module.named_buffers()),
        }
        weights = {
            name: value.float() if value.is_floating_point() else value
            for name, value in state.items()
        }
        return torch.func.functional_call(module, weights, inputs)


def export_detector(
    predictor: Predictor,
    path: Path,
    file_format: str,
    dtype: str = 'float32',
    folded: bool | None = None,
    with_postprocess: bool = False,
) -> Summary:
    """Write a detector to a file.

    Batch size, height and width stay free. Weights of another type become
    float32 when they are loaded: only the file is smaller. Of type int8 are
    matrices and the kernels of convolutions, with a scale for each row or
    output channel.

    Args:
        predictor: The detector, on the CPU; it stays as it is.
        path: The file; OpenVINO's weights go beside it, ending in ``.bin``.
        file_format: A key of `FORMATS`.
        dtype: Type of the stored weights, a key of `DTYPES`; the format torch
            has no ``int8``.
        folded: Whether the file holds the sums of the stacks (`fold`). If not
            given, only in the format torch: the other runtimes sum up once,
            when they load the file.
        with_postprocess: Whether the graph ends in detections (`Graph`).

    Returns:
        What was written.

    Raises:
        UsageError: If the detector cannot be exported, a package is missing,
            or the file cannot be written.
    """
    ending, packages = FORMATS[file_format]
    for name in packages:
        import_extra(name)
    if path.suffix != ending:
        raise UsageError(
            f'--out {path}: expected a name ending in {ending} for the '
            f'format {file_format}'
        )
    if (file_format, dtype) == ('torch', 'int8'):
        raise UsageError(
            '--dtype int8: expected float32 or float16 for the format torch'
        )
    meta = describe(predictor)
    model = copy.deepcopy(predictor.model).eval().requires_grad_(False)
    folded = file_format == 'torch' if folded is None else folded
    count = sum(value.numel() for value in model.state_dict().values())
    full: Any = fold(copy.deepcopy(model), generators=True)
    full_count = sum(value.numel() for value in full.state_dict().values())
    graph = Graph(full if folded else model, with_postprocess)
    meta |= {'dtype': dtype, 'folded': folded}
    meta |= {'inputs': graph.inputs, 'outputs': graph.outputs}
    if file_format == 'torch':
        contents, nodes = _as_torch(graph, dtype, meta)
    else:
        found = _to_onnx(graph, dtype)
        write = {'onnx': _as_onnx, 'openvino': _as_openvino}[file_format]
        contents, nodes = write(found, meta)
    for suffix, content in contents.items():
        atomic_write(path.with_suffix(suffix), content)
    size = sum(map(len, contents.values()))
    difference = (full_count - count) * DTYPES[dtype]
    return Summary(
        path, size, folded, size - difference if folded else size + difference,
        nodes, graph.inputs, graph.outputs,
    )  # fmt: skip


def describe(predictor: Predictor) -> dict[str, Any]:
    """Return what a file says about its detector.

    Args:
        predictor: The detector.

    Raises:
        UsageError: If it is no AdaMixer, or its preprocessing has a step that
            the runtime does not.
    """
    model = predictor.model
    if not isinstance(model, AdaMixer):
        raise UsageError(
            f'CONFIG: model.type={type(model).__name__!r}: expected '
            "'AdaMixer' (docs/deploy.md says what stops others)"
        )
    preprocessing = describe_preprocessing(predictor.config)
    stride = math.lcm(*model.decoder.strides)
    if preprocessing['pad_size_divisor'] % stride:
        raise UsageError(
            'CONFIG: model.data_preprocessor.pad_size_divisor='
            f'{preprocessing["pad_size_divisor"]}: expected a multiple of '
            f'{stride}, the largest stride'
        )
    return {
        'format': META_FORMAT,
        'lors_det': __version__,
        'classes': predictor.classes,
        'max_per_img': model.max_per_img,
        'preprocessing': preprocessing,
    }


def _example(graph: Graph) -> tuple[Tensor, ...]:
    """Return inputs to trace with; their sizes leave no trace."""
    sizes = torch.tensor([[96.0, 64.0], [90.0, 60.0]])
    inputs = (torch.randn(2, 3, 64, 96), sizes, torch.ones(2, 2))
    return inputs[: len(graph.inputs)]


def _to_onnx(graph: Graph, dtype: str) -> Any:
    """Return the graph in ONNX, simplified.

    By the exporter that traces: the one on torch.export writes the same
    operators, but works out a formula for each symbolic size, for minutes.
    """
    for module in graph.modules():
        if isinstance(module, AdaptiveSampling):
            module.in_one_pass = False
    axes: dict[str, Any] = {name: {0: 'batch'} for name in graph.inputs}
    axes |= {name: {0: 'batch'} for name in graph.outputs}
    axes['images'] |= {2: 'height', 3: 'width'}
    import onnx

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Of checks of sizes, and of what the default exporter will be.
        warnings.simplefilter('ignore')
        path = f'{folder}/model.onnx'
        torch.onnx.export(
            graph, _example(graph), path, dynamo=False, opset_version=OPSET,
            input_names=graph.inputs, output_names=graph.outputs,
            dynamic_axes=axes, do_constant_folding=False,
        )  # fmt: skip
        model = onnx.load(path)
    return _simplify(model, dtype)


def _simplify(model: Any, dtype: str) -> Any:
    """Let onnxruntime simplify a graph, but sum up no weights.

    It takes the weights for inputs meanwhile, which it must not change.
    """
    import onnx
    import onnxruntime

    weights = [
        onnx.TensorProto.FromString(w.SerializeToString())
        for w in model.graph.initializer
    ]
    del model.graph.initializer[:]
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(w.name, w.data_type, w.dims)
        for w in weights
    )
    num_inputs = len(model.graph.input) - len(weights)
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1  # it runs nothing
    with tempfile.TemporaryDirectory() as folder:
        path = options.optimized_model_filepath = f'{folder}/model.onnx'
        onnxruntime.InferenceSession(model.SerializeToString(), options)
        model = onnx.load(path)
    del model.graph.input[num_inputs:]
    del model.graph.value_info[:]
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid('', OPSET))
    nodes = list[Any]()
    for weight in weights:
        stored, to_float32 = _compress(weight, dtype)
        model.graph.initializer.extend(stored)
        nodes += to_float32
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


def _compress(weight: Any, dtype: str) -> tuple[list[Any], list[Any]]:
    """Return what to store for a weight, and nodes that give the weight."""
    from onnx import TensorProto, helper, numpy_helper

    value, name = numpy_helper.to_array(weight), weight.name
    if dtype == 'float32' or value.dtype != np.float32:
        return [weight], []
    small, wide = f'{name}.{dtype}', f'{name}.wide'
    if dtype == 'float16':
        stored = numpy_helper.from_array(value.astype('float16'), small)
        cast = helper.make_node('Cast', [small], [name], to=TensorProto.FLOAT)
        return [stored], [cast]
    if value.ndim not in (2, 4) or value.size < MIN_INT8_SIZE:
        return [weight], []
    axes = tuple(range(1, value.ndim))
    scale = np.abs(value).max(axes, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    stored = numpy_helper.from_array(
        np.rint(value / scale).astype('int8'), small
    )
    scales = numpy_helper.from_array(scale, f'{name}.scale')
    # Not DequantizeLinear: onnxruntime computes that for each image (1.5 x
    # the time), while Cast and Mul are folded once, when it loads the file.
    cast = helper.make_node('Cast', [small], [wide], to=TensorProto.FLOAT)
    multiply = helper.make_node('Mul', [wide, scales.name], [name])
    return [stored, scales], [cast, multiply]


def _as_onnx(model: Any, meta: Any) -> tuple[dict[str, bytes], int]:
    """Return the content of each file, by its ending, and number of nodes."""
    import onnx

    model.producer_name, model.producer_version = 'lors_det', __version__
    onnx.helper.set_model_props(model, {META_KEY: json.dumps(meta)})
    return {'.onnx': model.SerializeToString()}, len(model.graph.node)


def _as_openvino(model: Any, meta: Any) -> tuple[dict[str, bytes], int]:
    """Return what `_as_onnx` returns."""
    import openvino

    # Not by convert_model, which would sum up the weights.
    found = openvino.Core().read_model(model.SerializeToString())
    found.set_rt_info(json.dumps(meta), META_KEY)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'model.xml')
        openvino.serialize(found, path)
        contents = {
            suffix: path.with_suffix(suffix).read_bytes()
            for suffix in ('.bin', '.xml')
        }
    return contents, len(found.get_ops())


def _as_torch(
    graph: Graph, dtype: str, meta: Any
) -> tuple[dict[str, bytes], int]:
    """Return what `_as_onnx` returns."""
    step = meta['preprocessing']['pad_size_divisor']
    batch, height, width = (Dim(name) for name in ('batch', 'height', 'width'))
    shapes: list[Any] = [{0: batch} for _ in graph.inputs]
    shapes[0] |= {2: step * height, 3: step * width}
    _, *others = _example(graph)
    images = torch.zeros(2, 3, 2 * step, 3 * step)
    module: nn.Module = graph
    if dtype == 'float16':
        module = HalfWeights(graph)
        shapes = [tuple(shapes)]  # its inputs have no names
    program = torch.export.export(
        module, (images, *others), dynamic_shapes=tuple(shapes), strict=False
    )
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={META_KEY: json.dumps(meta)})
    return {'.pt2': file.getvalue()}, len(program.graph.nodes)
