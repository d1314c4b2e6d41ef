# SPDX-License-Identifier: Apache-2.0
"""Errors that a user sees: one line each."""

from __future__ import annotations

import re
import traceback
from textwrap import shorten


class UsageError(Exception):
    """A mistake that the user can mend; its text is one line."""


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line.

    Args:
        error: The error.
    """
    text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    if isinstance(error, OSError) and error.filename:
        text = f'{error.filename}: {error.strerror}'
    if 'Original Traceback' in text:  # of a data loader's worker
        text = text.strip().splitlines()[-1]
    text = re.sub(r' in <\S+ object at 0x\w+>$', '', text)  # by mmengine
    if not text:  # as of a bare assertion: show the line itself
        text = traceback.extract_tb(error.__traceback__)[-1].line or ''
    if ' ' not in text:
        text = f'{type(error).__name__}: {text}'
    return shorten(text, 400)
