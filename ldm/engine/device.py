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


def free_memory(device: str) -> int | None:
    """Bytes that can be taken on a device: of the machine, or of the container it runs in; None where nobody says."""
    if device.startswith("cuda"):
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch gives it out again
        return torch.cuda.mem_get_info(device)[0] + cached
    free = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free.append(int(dict(line.split(":") for line in lines)["MemAvailable"].split()[0]) * 1024)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(min(free), 0) if free else None


def give_back_memory() -> None:
    """Have the C library return what was freed to the system, where it can: short-lived threads leave gaps behind."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Peak:
    """The largest amount of memory in use since `reset`: resident on the CPU, allocated on CUDA. None: nobody says."""

    def __init__(self, device: str) -> None:
        self.device = device

    def reset(self) -> int:
        """Start anew; returns what is in use now."""
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        give_back_memory()  # what was freed and is still resident would hide the next peak
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return self._status("VmRSS")

    def read(self) -> int:
        """The peak in bytes; 0 where the system does not tell."""
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.device)
        return self._status("VmHWM")

    @staticmethod
    def _status(key: str) -> int:
        with contextlib.suppress(OSError, ValueError, KeyError):
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            return int(dict(line.split(":", 1) for line in lines)[key].split()[0]) * 1024
        return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
