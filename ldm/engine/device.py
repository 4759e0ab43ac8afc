"""The machine a method runs on: which device, how much memory it has free and has taken."""

import contextlib
import ctypes
import platform
from pathlib import Path

import torch


def usable_device(name: str | None) -> str:
    """A device that works; by default the graphics card where there is one. Raises ValueError."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"got device {name!r}, expected cpu or one that works here ({why})") from None
    return name


def exact_float32() -> None:
    """Have float32 be float32 on CUDA too, where cuDNN's convolutions would keep 10 of 23 bits (TF32)."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def hardware(device: str) -> dict[str, str | int]:
    """The device a result was computed on, and how many threads took part."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {"device": device.split(":")[0], "name": name, "threads": torch.get_num_threads()}


def _processor() -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").split("model name\t: ")[1].splitlines()[0]
    return platform.processor() or platform.machine()


def memory_budget(device: str) -> int | None:
    """Bytes that this process can use on a device, what it uses now included; None where the system does not tell.

    On the CPU: what is available of the machine, or of the container it runs in, and the process's own memory. Pages of
    files it has mapped, such as weights, are available already and are not counted twice.
    """
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = free_memory(device)
    return None if free is None else free + _status("RssAnon") + _status("RssShmem")


def free_memory(device: str) -> int | None:
    """Bytes that are free on a device: of the machine, or of the container; None where the system does not tell."""
    if device.startswith("cuda"):
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch gives it out again
        return torch.cuda.mem_get_info(device)[0] + cached
    free = [_table("/proc/meminfo").get("MemAvailable", 0) * 1024]
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            left = int(Path(folder, limit).read_text(encoding="ascii"))
            left -= int(Path(folder, used).read_text(encoding="ascii"))
            pages = _table(f"{folder}/memory.stat")  # of files: the kernel takes them back where they are needed
            free.append(left + pages.get("inactive_file", 0) + pages.get("active_file", 0))
    free = [value for value in free if value]
    return max(min(free), 0) if free else None


def _table(path: str) -> dict[str, int]:
    """The numbers of a file with lines such as `MemAvailable: 800 kB` or `active_file 800`; {} without the file."""
    with contextlib.suppress(OSError):
        lines = (line.replace(":", " ").split() for line in Path(path).read_text(encoding="ascii").splitlines())
        return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
    return {}


def _status(key: str) -> int:
    """Bytes of this process that /proc names so; 0 where there is none."""
    return _table("/proc/self/status").get(key, 0) * 1024


def return_memory() -> None:
    """Have the C library return freed memory to the system, where it can.

    glibc keeps freed maps of up to 32 MiB in its arenas, and each short-lived thread has an arena of its own.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Peak:
    """The largest amount of memory in use since `reset`: resident on the CPU, allocated on CUDA."""

    def __init__(self, device: str) -> None:
        self.device = device

    def reset(self) -> int:
        """Forget the peak so far; returns the bytes in use now."""
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        return_memory()  # what was freed and is still resident would hide the next peak
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _status("VmRSS")

    def read(self) -> int:
        """The peak in bytes; 0 where the system has no such counter."""
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.device)
        return _status("VmHWM")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
