# SPDX-License-Identifier: Apache-2.0
"""The one exception whose text is all that a user sees."""


class UsageError(Exception):
    """A mistake that the user can mend; its text is one line."""
