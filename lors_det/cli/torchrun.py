# SPDX-License-Identifier: Apache-2.0
"""torchrun whose last line is the error of the process that failed first."""

from __future__ import annotations

from typing import Any

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def run() -> None:
    """Run ``torchrun`` with the arguments of the command line.

    Raises:
        SystemExit: If a process failed, or a signal ended them.
    """
    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        found: Any = failure.message  # a dict if the process wrote one
        text = found['message'] if isinstance(found, dict) else found
        reason = text.splitlines()[-1].removeprefix('UsageError: ')
        raise SystemExit(f'error: process {rank}: {reason}') from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None


if __name__ == '__main__':
    run()
