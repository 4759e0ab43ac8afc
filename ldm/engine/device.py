"""The device of a method: selection, free memory and peak memory."""

import contextlib
import ctypes
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ldm import memory

# Parts of the messages of RuntimeError when memory runs out: of the CPU allocator, CUDA, cuBLAS, cuSOLVER, cuFFT, cuDNN
# (also when no algorithm has room for its workspace) and MPS
OUT_OF_MEMORY = (
    "allocate memory",
    "out of memory",
    "cublas_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "cufft_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_device_allocation_failed",
    "unable to find an engine to execute this computation",
)


def usable_device(name: str | None) -> str:
    """Return the name of a usable device; default: CUDA if available, otherwise the CPU. Raises ValueError.

    Every command asks for its device here, so that all compute float32 without TF32.
    """
    exact_float32()
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).cpu()  # which devices without values refuse
    except (RuntimeError, AssertionError) as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"got device {name!r}, expected cpu or one that works here ({why})") from None
    return name


def check_cards(numbers: Sequence[int]) -> None:
    """Raise ValueError unless there are CUDA devices of these numbers; opens no context on them, as a tensor would."""
    exact_float32()
    count = torch.cuda.device_count()
    for number in numbers:
        if number >= count:
            raise ValueError(f"got device 'cuda:{number}', expected one that works here ({count} CUDA devices found)")


def exact_float32() -> None:
    """Disable TF32 on CUDA, which keeps only 10 of the 23 mantissa bits of float32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def pin_for(x: Tensor, device: torch.device | str) -> Tensor:
    """Return a CPU tensor in pinned memory if `device` is CUDA, so that it can be copied asynchronously."""
    return x.pin_memory() if torch.device(device).type == "cuda" else x


def to_host(x: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the CPU, and return a function that returns the copy, waiting for it if necessary.

    From CUDA devices the copy is asynchronous, into pinned memory.
    """
    if x.device.type != "cuda":
        here = x.cpu()
        return lambda: here
    here = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    here.copy_(x, non_blocking=True)
    copied = torch.cuda.current_stream(x.device).record_event()

    def arrived() -> Tensor:
        copied.synchronize()
        return here

    return arrived


def hardware(device: str) -> dict[str, str | int]:
    """Describe the device and the number of threads, for records."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {"device": device.split(":")[0], "name": name, "threads": torch.get_num_threads()}


def _processor() -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").split("model name\t: ")[1].splitlines()[0]
    return platform.processor() or platform.machine()


def memory_budget(device: str) -> int | None:
    """Return the bytes that this process can use on a device, including current use; None if unknown.

    On the CPU: the available memory of the machine or container plus the process's own memory. Pages of mapped files,
    such as weights, already count as available and are not counted twice.
    """
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = free_memory(device)
    return None if free is None else free + _status("RssAnon") + _status("RssShmem")


def free_memory(device: str) -> int | None:
    """Return the free bytes of a device (of the machine, or of the container on the CPU); None if unknown."""
    if device.startswith("cuda"):
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch reuses it
        return torch.cuda.mem_get_info(device)[0] + cached
    return memory.free_host_memory()


def _status(key: str) -> int:
    """Return a value of /proc/self/status in bytes; 0 if it does not exist."""
    return memory.table("/proc/self/status").get(key, 0) * 1024


def return_memory() -> None:
    """Return freed memory of the C library to the system, if the library supports it.

    glibc keeps freed blocks of up to 32 MiB in its arenas, and each thread has its own arena.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Peak:
    """Peak memory since `reset`, in bytes: resident memory on the CPU, allocated memory on CUDA."""

    def __init__(self, device: str) -> None:
        self.device = device

    def reset(self) -> int:
        """Reset the peak and return the bytes in use."""
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        return_memory()  # freed but resident memory would hide the next peak
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _status("VmRSS")

    def read(self) -> int:
        """Return the peak in bytes; 0 if the system has no such counter."""
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.device)
        return _status("VmHWM")


def _wait(device: str | torch.device) -> None:
    """Wait until a device has finished all queued work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def count_flops(work: Callable[[], object]) -> int:
    """Return the multiplications and additions in products, convolutions and attention during `work()`."""

    def attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
        return sdpa_flop_count(query, key, value)

    own = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}  # which torch does not count
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        work()
    return counter.get_total_flops()


def seconds_of(work: Callable[[], object], device: str | torch.device) -> float:
    """Return the duration of `work()` on a device, including the work that it queues there."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
