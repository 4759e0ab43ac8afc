"""Free memory of the machine or container, for checks before a file is decoded or a network is built."""

import contextlib
from pathlib import Path


def free_host_memory() -> int | None:
    """Return the free bytes of the machine, or of the container if that has fewer; None if unknown."""
    free = [table("/proc/meminfo").get("MemAvailable", 0) * 1024]
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" means no limit
            left = int(Path(folder, limit).read_text(encoding="ascii"))
            left -= int(Path(folder, used).read_text(encoding="ascii"))
            pages = table(f"{folder}/memory.stat")  # the kernel reclaims pages of files on demand
            free.append(left + pages.get("inactive_file", 0) + pages.get("active_file", 0))
    free = [value for value in free if value]
    return max(min(free), 0) if free else None


def table(path: str) -> dict[str, int]:
    """Read a file with lines such as `MemAvailable: 800 kB` or `active_file 800`; empty if it does not exist."""
    with contextlib.suppress(OSError):
        lines = (line.replace(":", " ").split() for line in Path(path).read_text(encoding="ascii").splitlines())
        return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
    return {}
