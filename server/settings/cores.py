"""Count the CPU cores that this process may use."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def usable_cores(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int:
    """Count the usable cores: the CPU affinity, limited by the quota of the cgroup."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [math.ceil(quota) for quota in _cgroup_quotas(root, membership)]
    return max(1, min([cores or 1, *quotas]))


def _cgroup_quotas(root: Path, membership: Path) -> Iterator[float]:
    """Yield each quota that applies, in cores: cgroup v2 `cpu.max`, or v1 `cpu.cfs_quota_us`."""
    limits = [[root / "cpu" / "cpu.cfs_quota_us", root / "cpu" / "cpu.cfs_period_us"]]
    with suppress(OSError):
        group = membership.read_text().rpartition("0::")[2].strip().strip("/")
        limits += [[root / level / "cpu.max"] for level in (Path(group), *Path(group).parents)]
    for files in limits:
        with suppress(OSError):
            quota, period = " ".join(file.read_text().strip() for file in files).split()
            if quota not in {"max", "-1"}:
                yield int(quota) / int(period)
