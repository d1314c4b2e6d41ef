# SPDX-License-Identifier: Apache-2.0
"""Measure time and memory of calls, side by side and in turns."""

from __future__ import annotations

import ctypes
import gc
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Call = Callable[[], object]
#: From the number of a round to a call on fresh inputs; not timed itself.
Prepare = Callable[[int], Call]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise values; one alone is its own quartiles."""
        values = list(values)
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, n=4, method='inclusive')
        return cls(median(values), low, high)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, as torch's allocator does on a GPU.

    Otherwise every large tensor comes from the system, page by page, and a
    measurement is one of page faults. Elsewhere than on glibc, nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no mapping for a single tensor
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing is given back


def ratio(seconds: Iterable[float], baseline: Iterable[float]) -> Spread:
    """How much longer one takes, round by round.

    What slows the machine for a while slows both sides of a round.

    Args:
        seconds: Of every round.
        baseline: Of the same rounds.
    """
    pairs = zip(seconds, baseline, strict=True)
    return Spread.of(mine / theirs for mine, theirs in pairs)


def measure(
    variants: Mapping[str, Prepare],
    repeats: int,
    warm_up: int = 2,
    device: str = 'cpu',
) -> dict[str, list[float]]:
    """Time variants in turns, in alternating order.

    In a round every variant is prepared with the round's number, so that all
    can draw the same random inputs. The clock starts and stops when the
    device has nothing left to do. Garbage is collected between the calls, and
    only there.

    Args:
        variants: What to time, by name.
        repeats: Rounds that count.
        warm_up: Rounds before that do not.
        device: Where the variants run.

    Returns:
        Seconds of every round, by the variant's name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    enabled = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()  # what is there now stays: not looked at again and again
    try:
        for number in range(warm_up + repeats):
            names = list(variants)
            for name in names if number % 2 else reversed(names):
                taken = _time(variants[name](number), device)
                if number >= warm_up:
                    seconds[name].append(taken)
                gc.collect()
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
    return seconds


def _time(call: Call, device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    taken = time.perf_counter() - start
    del result  # not before: freeing is not part of the call
    return taken


def synchronize(device: str) -> None:
    """Wait until a device has done what it was given."""
    if device.startswith('cuda'):
        torch.cuda.synchronize(device)


def peak_bytes(call: Call, device: str = 'cpu') -> int:
    """Largest memory in use during a call, beyond what was before it.

    On a GPU torch's allocator counts; elsewhere `LiveBytes` does, which slows
    the call: do not time it at once.

    Args:
        call: What to run, once.
        device: Where it runs.

    Returns:
        Bytes.
    """
    if device.startswith('cuda'):
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as memory:
        result = call()
    del result
    return memory.peak


class LiveBytes(TorchDispatchMode):
    """Count the bytes of tensors that are alive, and their largest sum.

    Counted are storages that operators return while the mode is on, on any
    device, the meta device too. What an operator allocates for itself and
    frees before it returns is not seen, nor is compiled code.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, then count what is new in its result."""
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            self._follow(storage, 0)  # was there before
        result = func(*args, **kwargs)
        for storage in _storages(result):
            self._follow(storage, storage.nbytes())
        return result

    def _follow(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def saved_bytes(forward: Call, parameters: Iterable[Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass.

    Args:
        forward: The pass; called once.
        parameters: Tensors that are there anyway: not counted.

    Returns:
        The size of what autograd saves, each storage once.
    """
    there = {x.untyped_storage()._cdata for x in parameters}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in there:
            kept[storage._cdata] = storage  # alive, or its key is reused
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in kept.values())


def multiply_adds(call: Call) -> int:
    """Multiply-adds of the matrix products of a call.

    Counted by torch's ``FlopCounterMode``; operators that work element by
    element are not counted, nor is sampling.

    Args:
        call: What to run, once; on the meta device it costs no time.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        call()
    return int(counter.get_total_flops()) // 2


def _storages(tree: Any) -> Iterable[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            yield leaf.untyped_storage()
