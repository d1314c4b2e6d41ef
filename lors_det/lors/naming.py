# SPDX-License-Identifier: Apache-2.0
"""Match names of modules, and suggest the nearest ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SHOWN = 8


def match_module_names(
    pattern: str, names: Iterable[str], what: str
) -> list[str]:
    """Return the names that a pattern matches.

    A pattern is a name; or a glob, where ``*`` stands for anything without
    a dot, ``**`` for anything and ``?`` for one character; or, behind
    ``re:``, a regular expression for the whole name.

    Args:
        pattern: The pattern.
        names: Names to choose from.
        what: What the names are names of, for the error message.

    Returns:
        The names in their order, at least one.

    Raises:
        TypeError: If the pattern is not a string.
        ValueError: If no name matches (the message has the nearest ones), or
            the regular expression is invalid.
    """
    if not isinstance(pattern, str):
        raise TypeError(f'{pattern!r}: expected the name of {what}')
    names = list(names)
    if pattern in names:
        return [pattern]
    try:
        expression = re.compile(_expression(pattern))
    except re.error as error:
        raise ValueError(f'{pattern!r} is no pattern: {error}') from None
    found = [name for name in names if expression.fullmatch(name)]
    if not found:
        near = difflib.get_close_matches(pattern, names, SHOWN, 0.3)
        text = ', '.join(map(repr, near or names[:SHOWN]))
        raise ValueError(
            f'{pattern!r} matches no {what}; '
            + (f'the nearest are {text}' if text else 'there is none')
        )
    return found


def _expression(pattern: str) -> str:
    if pattern.startswith('re:'):
        return pattern[3:]
    wild = {'**': '.*', '*': r'[^.]*', '?': r'[^.]'}
    parts = re.split(r'(\*\*|\*|\?)', pattern)
    return ''.join(wild.get(part) or re.escape(part) for part in parts)
