# SPDX-License-Identifier: Apache-2.0
"""Compare the time of calls in alternating rounds; count their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer
from torch.utils.weak import WeakIdKeyDictionary

Call = Callable[[], object]


class Spread(NamedTuple):
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise values; a single value is its own quartiles."""
        return cls(*np.quantile([*values], [0.5, 0.25, 0.75]).tolist())

    def text(self, digits: int = 2, scale: float = 1) -> str:
        """Format as ``1.47 (1.45-1.50)``: the median and the quartiles.

        Args:
            digits: Digits behind the point.
            scale: Factor to another unit.
        """
        median, low, high = (f'{scale * x:.{digits}f}' for x in self)
        return median if low == high else f'{median} ({low}-{high})'


def measure(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Time calls in rounds: each once in a round, in alternating order.

    What slows the machine for a while slows all calls of a round, so that
    ratios within a round stay. `torch.utils.benchmark.Timer` times: it makes
    two calls to warm up, waits for the GPU, and holds garbage collection.

    Args:
        calls: What to time, by name.
        rounds: Number of rounds.

    Returns:
        Seconds of every round, by name.
    """
    threads = torch.get_num_threads()
    timers = {
        name: Timer('call()', globals={'call': call}, num_threads=threads)
        for name, call in calls.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in calls if number % 2 else reversed([*calls]):
            seconds[name] += timers[name].timeit(1).times
    return seconds


def ratio(seconds: Iterable[float], baseline: Iterable[float]) -> Spread:
    """Divide round by round.

    Args:
        seconds: Of every round.
        baseline: Of the same rounds.

    Returns:
        How many times longer the first takes.
    """
    pairs = zip(seconds, baseline, strict=True)
    return Spread.of(mine / theirs for mine, theirs in pairs)


def peak_bytes(call: Call, device: str = 'cpu') -> int:
    """Measure the largest memory in use during a call, less that before it.

    On a GPU torch's allocator counts; elsewhere `LiveBytes` does, which slows
    the call: do not time it in the same run.

    Args:
        call: What to run, once.
        device: Where it runs.

    Returns:
        Bytes.
    """
    if device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as memory:
        call()
    return memory.peak


class LiveBytes(TorchDispatchMode):
    """Count the bytes of tensors that are alive, and their largest sum.

    Counted are storages that operators return while the mode is on, on any
    device, the meta device too. What an operator allocates for itself and
    frees before it returns is not seen, nor is compiled code.

    No public module of torch has the class that it derives from.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.peak = 0
        # A storage is one object as long as its memory lives.
        self._sizes: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, then count what is new in its result."""
        kwargs = kwargs or {}
        for storage in _storages([*args, *kwargs.values()]):
            self._sizes.setdefault(storage, 0)  # was there before
        result = func(*args, **kwargs)
        for storage in _storages(result):
            self._sizes.setdefault(storage, storage.nbytes())
        self.peak = max(self.peak, sum(self._sizes.values()))
        return result


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    """Find the storages of all tensors in arguments or results."""
    if isinstance(value, Tensor):
        yield value.untyped_storage()
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _storages(entry)
