"""A device without values, to count what a method does on it: operations, reads by the host, copies.

It is played by the meta device. What the host reads is made up: flags are true, other values are zero.
"""

import contextlib
from collections import Counter
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = "meta"
READ = ("_local_scalar_dense", "equal", "is_nonzero")
COPY = ("_to_copy", "copy_")
VIEWS = "_unsafe_view alias as_strided detach expand lift_fresh permute select slice split split_with_sizes squeeze t"
NO_KERNEL = (*VIEWS.split(), "transpose", "unbind", "unflatten", "unsqueeze", "view")


class Counting(TorchDispatchMode):
    """Count what happens on the device, and refuse operations that mix it with the CPU.

    `counts` has "operations", which start a kernel; "reads", for which the host waits; copies "to device" and "to host"
    with their "bytes to device" and "bytes to host"; and on any device "weight casts", changes of a parameter's type.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.stack = Counter(), contextlib.ExitStack()

    def __enter__(self):
        """Also count values of Python that become tensors of the device: each is a copy for which the host waits."""
        for owner, name in ((torch, "tensor"), (Tensor, "new_tensor")):
            self.stack.enter_context(mock.patch.object(owner, name, self._counted(getattr(owner, name))))
        return super().__enter__()

    def __exit__(self, *error):
        self.stack.close()
        return super().__exit__(*error)

    def _counted(self, make):
        def made(*args, **kwargs):
            out = make(*args, **kwargs)
            self.counts["to device"] += out.is_meta
            return out

        return made

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name in READ and given[0].is_meta:
            self.counts["reads"] += 1
            return name != "_local_scalar_dense" or (True if given[0].dtype == torch.bool else 0)
        if name in COPY:
            return self._copy(func, name, args, kwargs)
        devices = {x.device.type for x in given if x.ndim}
        assert len(devices) < 2, f"{name} mixes devices"
        out = func(*args, **kwargs)
        if name not in NO_KERNEL and any(x.is_meta for x in tree_leaves(out) if isinstance(x, Tensor)):
            self.counts["operations"] += 1
        return out

    def _copy(self, func, name, args, kwargs):
        source, target = (args[1], args[0].device) if name == "copy_" else (args[0], kwargs.get("device"))
        target = torch.device(target or source.device)
        if source.is_meta and target.type != "meta":
            out = torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        else:
            out = func(*args, **kwargs)
        if source.device != target:
            way = "to device" if target.type == "meta" else "to host"
            self.counts[way] += 1
            self.counts[f"bytes {way}"] += out.nbytes
        else:
            self.counts["operations"] += source.is_meta
            self.counts["weight casts"] += isinstance(source, torch.nn.Parameter) and out.dtype != source.dtype
        return out
