# SPDX-License-Identifier: Apache-2.0
"""Export a detector: python tools/export.py CONFIG CHECKPOINT."""

import argparse

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.boundary import OneLineErrors


def main():
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        description='Write a detector as ONNX, OpenVINO or a torch.export '
        'program, whose batch size, height and width are free '
        '(docs/deploy.md).'
    )
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', help='checkpoint file'
    )
    parser.add_argument(
        '--format', choices=['onnx', 'openvino', 'torch'], default='onnx'
    )
    parser.add_argument(
        '--dtype',
        choices=['float32', 'float16', 'int8'],
        default='float32',
        help='type of the stored weights; all is computed in float32 '
        '(%(default)s)',
    )
    parser.add_argument(
        '--fold',
        action=argparse.BooleanOptionalAction,
        help='write the sums of shared and low-rank weights (only for torch '
        'if not given: other runtimes sum up once, when they load a file)',
    )
    parser.add_argument(
        '--with-postprocess',
        action='store_true',
        help='end in the top k boxes in pixels of the original images, '
        'scores and labels, not in logits and boxes',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help="compare the file with torch on the config's validation images; "
        'exit status 1 if it differs',
    )
    parser.add_argument(
        '--out',
        metavar='FILE',
        help='.onnx, .xml or .pt2 (in work_dirs/CONFIG if not given)',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='write over FILE'
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='let the checkpoint run code while it is loaded, as a pickle can',
    )
    with OneLineErrors() as errors:
        args = parser.parse_args()
        from lors_det.cli.export import export  # late: --help needs no torch

        export(args, errors)


if __name__ == '__main__':
    main()
