# SPDX-License-Identifier: Apache-2.0
"""The processes of a sweep: one run at a time, and one sweep per folder."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from lors_det.errors import UsageError

LOCK_PATIENCE = 10  # seconds for the processes of a killed sweep to end
STOP_PATIENCE = 30  # seconds for a run to end before it is killed
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


class Ended(NamedTuple):
    """How a run ended.

    Args:
        code: Exit status; negative for a signal.
        peak_mib: Resident memory of its largest process, in MiB.
    """

    code: int
    peak_mib: float


def execute(command: Sequence[str], output: Path, lock: int) -> Ended:
    """Run a command that does not outlive this process.

    Args:
        command: The command.
        output: File for all that it prints.
        lock: File descriptor that the command keeps open.

    Returns:
        How it ended.
    """
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def follow_parent() -> None:
        if sys.platform == 'linux':
            libc.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

    with output.open('wb') as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'PYTHON': sys.executable},
            # A group of its own, to be stopped together.
            start_new_session=True,
            preexec_fn=follow_parent,
            pass_fds=(lock,),
        )
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        _stop(process)
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 2**20 if sys.platform == 'darwin' else 2**10
    return Ended(process.returncode, usage.ru_maxrss / unit)


def last_line(output: Path) -> str:
    """Find the line that says why a run failed: an error's, or the last.

    Args:
        output: What the run printed.
    """
    text = output.read_text(encoding='utf-8', errors='replace')
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # torchrun puts a page of its own after it.
    errors = [
        line
        for line in lines
        if re.match(r'(error|[\w.]*(Error|Exception)): .', line)
    ]
    return (errors or lines or ['it printed nothing'])[-1]


def commit_of(root: Path) -> str:
    """The commit of the code, '+dirty' if tracked files differ from it.

    Args:
        root: Root of the repository.

    Returns:
        The hash; empty if there is no such repository.
    """

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(
                ['git', '-C', str(root), *arguments],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ''

    # An installed package may lie in somebody else's repository.
    top = git('rev-parse', '--show-toplevel')
    if not top or Path(top) != root:
        return ''
    dirty = git('status', '--porcelain', '--untracked-files=no')
    return git('rev-parse', 'HEAD') + ('+dirty' if dirty else '')


@contextmanager
def lock_folder(folder: Path) -> Iterator[int]:
    """Keep other sweeps out of the folder, until the last process ends.

    Runs inherit the lock, so that one which outlives its sweep is not joined
    by another in the same folder.

    Args:
        folder: Folder of the sweep; made if it is not there.

    Yields:
        File descriptor of the lock.

    Raises:
        UsageError: If the folder is in use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / '.lock').open('w') as file:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UsageError(
                        f'--work-dir {folder}: another sweep, or a run that '
                        'it left behind, is at work there'
                    ) from None
                time.sleep(0.2)
        yield file.fileno()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that the run in progress is stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a run and all its processes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_PATIENCE)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
