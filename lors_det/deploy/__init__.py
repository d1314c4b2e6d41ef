# SPDX-License-Identifier: Apache-2.0
"""Detectors outside of Python: ONNX, OpenVINO and torch.export programs."""
