# SPDX-License-Identifier: Apache-2.0
"""Convert checkpoints of the official AdaMixer and LORS releases."""
