# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the official AdaMixer and LORS releases."""
