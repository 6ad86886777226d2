"""What a model costs on this machine: latency, CPU-seconds, and which CPU that was.

Figures from here are never reproducible, so they are only ever written under `measured`, together
with the identity of the CPU.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic import JsonValue

ISA = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")


def cpu() -> dict[str, JsonValue]:
    """The CPU's model, core count and the instruction sets that decide how int8 runs."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    return {
        "model": model,
        "machine": platform.machine(),
        "cores": os.cpu_count() or 1,
        "isa": [name for name in ISA if name in flags],
    }


def latency_ms(call: Callable[[], object], runs: int = 200, warm_up: int = 20) -> dict[str, float]:
    """Median and 95th percentile wall time of `call` in milliseconds, after a warm-up."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e6)
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50": round(float(p50), 4), "p95": round(float(p95), 4)}


@contextmanager
def cpu_seconds() -> Iterator[dict[str, JsonValue]]:
    """Yield a dict that holds, after the block, the process's CPU-seconds and the CPU."""
    spent: dict[str, JsonValue] = {"cpu": cpu()}
    start = time.process_time()
    yield spent
    spent["cpu_seconds"] = round(time.process_time() - start, 3)
