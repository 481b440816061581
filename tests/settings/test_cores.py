"""The number of usable cores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from server.settings.cores import usable_cores


@pytest.fixture
def cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Counts the cores of a process with an affinity of 8, in a cgroup of these files."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))

    def cores(files: dict[str, str], membership: str | None = "0::/\n") -> int:
        for name, content in files.items():
            (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / name).write_text(content)
        if membership is not None:
            (tmp_path / "membership").write_text(membership)
        return usable_cores(tmp_path / "cgroup", tmp_path / "membership")

    return cores


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        pytest.param({}, None, 8, id="no cgroups: the affinity"),
        pytest.param({"cpu.max": "max 100000\n"}, "0::/\n", 8, id="v2, no quota"),
        pytest.param({"cpu.max": "150000 100000\n"}, "0::/\n", 2, id="v2, rounded up"),
        pytest.param({"cpu.max": "10000 100000\n"}, "0::/\n", 1, id="v2, less than one core"),
        pytest.param({"cpu.max": "1600000 100000\n"}, "0::/\n", 8, id="v2, more than there are"),
        pytest.param({"a/b/cpu.max": "300000 100000\n"}, "0::/a/b\n", 3, id="v2, own group"),
        pytest.param(
            {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"},
            "0::/a/b\n",
            4,
            id="v2, the quota of the group around",
        ),
        pytest.param(
            {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "200000 100000\n"},
            "0::/a/b\n",
            2,
            id="v2, the smallest quota of nested groups",
        ),
        pytest.param({"c/cpu.max": "100000 100000\n"}, "0::/a/b\n", 8, id="v2, a stranger's group"),
        pytest.param({"cpu.max": "200000 100000\n"}, "0::/gone\n", 2, id="v2, group not mounted"),
        pytest.param(
            {"a/cpu.max": "200000 100000\n"}, "1:name=systemd:/x\n0::/a\n", 2, id="hybrid"
        ),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            "4:cpu,cpuacct:/\n1:name=systemd:/\n",
            2,
            id="v1",
        ),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            "4:cpu,cpuacct:/\n",
            8,
            id="v1, no quota",
        ),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "150000\n"}, "4:cpu,cpuacct:/\n", 8, id="v1, no period"
        ),
    ],
)
def test_a_quota_of_the_cgroup_limits_the_cores(
    cores: Callable[..., int], files: dict[str, str], membership: str | None, expected: int
) -> None:
    """A container sees every core of its node, and may use what its quota gives."""
    assert cores(files, membership) == expected


def test_the_cores_of_this_very_machine_can_be_counted() -> None:
    assert usable_cores() >= 1
