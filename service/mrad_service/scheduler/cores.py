"""How many cores tensor operations may take: what PyTorch sees, and what the container may use."""

from __future__ import annotations

from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Threads for a device: PyTorch's number (`OMP_NUM_THREADS`, affinity), at most the CPU quota.

    PyTorch does not know of a container's quota (`docker run --cpus 4`): on 64 cores it would start
    64 threads, which are stopped for most of each period while they wait for one another.
    """
    return max(1, min(torch.get_num_threads(), _quota(cgroup)))


def _quota(cgroup: Path) -> int:
    """Whole cores of the cgroup's CPU quota, version 2 or 1; as good as none where there is none."""
    one, two = cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu.max"
    try:
        if two.is_file():
            limit, period = two.read_text().split()[:2]
        else:
            limit, period = (
                one.with_name(f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period")
            )
        return 1 << 16 if limit.strip() in ("max", "-1") else int(limit) // int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return 1 << 16
