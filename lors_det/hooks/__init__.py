# SPDX-License-Identifier: Apache-2.0
"""Hooks that mmengine lacks: exact resume, safe checkpoints, bad steps."""
