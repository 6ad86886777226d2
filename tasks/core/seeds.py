"""One place that makes a process deterministic: seeds, threads, algorithms."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def deterministic(seed: int, threads: int) -> None:
    """Seed Python, NumPy and torch, fix the thread count and refuse nondeterministic kernels.

    Training bytes are equal across processes at a fixed number of threads and differ between
    numbers, so `threads` comes from `params.yaml`, never from the machine.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that draw from the global state
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms loads all of dynamo
    # What is read was written first, and filling the rest costs a small network a tenth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def derived(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on every name: streams that never overlap.

    >>> derived(0, "shuffle", 1) == derived(0, "shuffle", 1) != derived(0, "shuffle", 2)
    True
    """
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for one named stream."""
    return np.random.default_rng(derived(seed, *names))
