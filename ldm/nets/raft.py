"""RAFT (Teed and Deng 2020, "Recurrent all-pairs field transforms"): optical flow refined over all pairs of pixels."""

from collections.abc import Callable
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.ops.flow import pair_of, pixel_grid

BUILDABLE = ("RAFT",)  # what a configuration may name as a target

_LEVELS = 4  # of the correlation pyramid
_STRIDE = 8  # of the features
_SMALLEST = _STRIDE * 2 ** (_LEVELS - 1)  # pixels a side: the coarsest level keeps at least one feature
_CHUNK = 2**25  # elements gathered at a time by the correlation without a volume


class FlowBatchNorm(nn.BatchNorm2d):
    """BatchNorm with its stored statistics or, if `own` is set, with those of the batch; neither is updated."""

    own = False

    def forward(self, x: Tensor) -> Tensor:
        if self.own:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(x)


def _norm(kind: str, channels: int) -> nn.Module:
    return {"batch": FlowBatchNorm, "instance": nn.InstanceNorm2d, "none": nn.Identity}[kind](channels)


class FlowResidualUnit(nn.Module):
    """Two 3x3 convolutions, or three as a bottleneck, each followed by norm and ReLU, added to the (strided) input."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, norm: str, bottleneck: bool):
        super().__init__()
        narrow = channels // 4
        if bottleneck:
            self.conv1 = nn.Conv2d(in_channels, narrow, 1)
            self.conv2 = nn.Conv2d(narrow, narrow, 3, stride, 1)
            self.conv3 = nn.Conv2d(narrow, channels, 1)
            self.norm1, self.norm2, self.norm3 = _norm(norm, narrow), _norm(norm, narrow), _norm(norm, channels)
        else:
            self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1)
            self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
            self.norm1, self.norm2 = _norm(norm, channels), _norm(norm, channels)
        self.depth = 3 if bottleneck else 2
        self.downsample = None
        if stride > 1:
            # The released files contain this norm under two names; it is registered under both.
            last = _norm(norm, channels)
            self.add_module(f"norm{self.depth + 1}", last)
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride), last)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for k in range(1, self.depth + 1):
            y = F.relu(getattr(self, f"norm{k}")(getattr(self, f"conv{k}")(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class FlowFeatureEncoder(nn.Module):
    """Images (n, 3, h, w) -> features (n, out_channels, h/8, w/8); `widths` are those of the three stages."""

    def __init__(self, widths: tuple[int, int, int], out_channels: int, *, norm: str, bottleneck: bool):
        super().__init__()
        self.norm1 = _norm(norm, widths[0])
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3)
        below = (widths[0], *widths[:-1])
        for k, (before, width, stride) in enumerate(zip(below, widths, (1, 2, 2), strict=True), start=1):
            first = FlowResidualUnit(before, width, stride=stride, norm=norm, bottleneck=bottleneck)
            second = FlowResidualUnit(width, width, stride=1, norm=norm, bottleneck=bottleneck)
            self.add_module(f"layer{k}", nn.Sequential(first, second))
        self.conv2 = nn.Conv2d(widths[-1], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return self.conv2(self.layer3(self.layer2(self.layer1(x))))


class FlowMotionEncoder(nn.Module):
    """Encode the current flow for the recurrent unit: (correlation, flow) -> features with the flow appended."""

    def __init__(self, corr_channels: int, *, corr: tuple[int, ...], flow: tuple[int, int], out_channels: int):
        super().__init__()
        self.convc1 = nn.Conv2d(corr_channels, corr[0], 1)
        self.convc2 = nn.Conv2d(corr[0], corr[1], 3, padding=1) if len(corr) > 1 else None
        self.convf1 = nn.Conv2d(2, flow[0], 7, padding=3)
        self.convf2 = nn.Conv2d(flow[0], flow[1], 3, padding=1)
        self.conv = nn.Conv2d(corr[-1] + flow[1], out_channels - 2, 3, padding=1)

    def forward(self, flow: Tensor, corr: Tensor) -> Tensor:
        c = F.relu(self.convc1(corr))
        if self.convc2 is not None:
            c = F.relu(self.convc2(c))
        f = F.relu(self.convf2(F.relu(self.convf1(flow))))
        return torch.cat((F.relu(self.conv(torch.cat((c, f), 1))), flow), 1)


class FlowGRU(nn.Module):
    """Convolutional gated recurrent unit: 3x3, or `separable` as 1x5 followed by 5x1."""

    def __init__(self, hidden: int, inputs: int, *, separable: bool):
        super().__init__()
        kernels = {"1": (1, 5), "2": (5, 1)} if separable else {"": (3, 3)}
        self.passes = tuple(kernels)
        for suffix, kernel in kernels.items():
            for gate in "zrq":
                padding = (kernel[0] // 2, kernel[1] // 2)
                self.add_module(f"conv{gate}{suffix}", nn.Conv2d(hidden + inputs, hidden, kernel, padding=padding))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        for suffix in self.passes:
            z, r, q = (getattr(self, f"conv{gate}{suffix}") for gate in "zrq")
            hx = torch.cat((h, x), 1)
            update, reset = torch.sigmoid(z(hx)), torch.sigmoid(r(hx))
            h = (1 - update) * h + update * torch.tanh(q(torch.cat((reset * h, x), 1)))
        return h


class FlowHead(nn.Module):
    """Map the hidden state to a flow update (n, 2, h, w), in units of the feature grid."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(h)))


class FlowUpdateBlock(nn.Module):
    """One refinement: (hidden, context, correlation, flow) -> (hidden, flow update)."""

    def __init__(self, small: bool, hidden: int, context: int, corr_channels: int):
        super().__init__()
        motion = 82 if small else 128
        if small:
            self.encoder = FlowMotionEncoder(corr_channels, corr=(96,), flow=(64, 32), out_channels=motion)
        else:
            self.encoder = FlowMotionEncoder(corr_channels, corr=(256, 192), flow=(128, 64), out_channels=motion)
        self.gru = FlowGRU(hidden, context + motion, separable=not small)
        self.flow_head = FlowHead(hidden, 128 if small else 256)
        # weights of the convex upsampling; the small model upsamples bilinearly
        fine = _STRIDE * _STRIDE * 9
        self.mask = (
            None if small else nn.Sequential(nn.Conv2d(hidden, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, fine, 1))
        )

    def forward(self, hidden: Tensor, context: Tensor, corr: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.gru(hidden, torch.cat((context, self.encoder(flow, corr)), 1))
        return hidden, self.flow_head(hidden)


def _window(radius: int, like: Tensor) -> Tensor:
    """Return offsets (x, y) as (K, K, 2); the first index runs over x, as the weights of `convc1` expect."""
    d = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(d, d, indexing="ij"), -1)


def _sample(maps: Tensor, positions: Tensor) -> Tensor:
    """Sample maps (n, c, h, w) bilinearly at positions (n, a, b, 2) in pixels, 0 outside -> (n, c, a, b)."""
    size = pair_of(maps.shape[-1], maps.shape[-2], positions)
    # with align_corners False the same sampling is also defined for a side of one pixel
    return F.grid_sample(maps, (2 * positions + 1) / size - 1, padding_mode="zeros", align_corners=False)


def correlation_by_volume(fmap1: Tensor, fmap2: Tensor, *, radius: int) -> Callable[[Tensor], Tensor]:
    """Store the correlations of all pairs; lookup of positions (n, 2, h, w) -> (n, 4 K K, h, w), K = 2 radius + 1.

    Memory: n (h w)^2 4/3 elements. Lookups are cheap.
    """
    n, c, h, w = fmap1.shape
    volume = torch.einsum("ncq,ncp->nqp", fmap1.flatten(2) / sqrt(c), fmap2.flatten(2)).reshape(n * h * w, 1, h, w)
    pyramid = [volume]
    for _ in range(_LEVELS - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    offsets = _window(radius, fmap1)

    def lookup(positions: Tensor) -> Tensor:
        centre = positions.movedim(1, -1).reshape(n * h * w, 1, 1, 2)
        found = [_sample(level, centre / 2**k + offsets).reshape(n, h, w, -1) for k, level in enumerate(pyramid)]
        return torch.cat(found, -1).movedim(-1, 1)

    return lookup


def correlation_on_demand(fmap1: Tensor, fmap2: Tensor, *, radius: int) -> Callable[[Tensor], Tensor]:
    """Return the lookup of `correlation_by_volume` without storing the volume, for large images.

    Correlation is linear: features of the second image can be pooled and sampled before multiplication. Memory is
    bounded; lookups are slower.
    """
    n, c, h, w = fmap1.shape
    query = fmap1.flatten(2) / sqrt(c)
    pyramid = [fmap2]
    for _ in range(_LEVELS - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    offsets = _window(radius, fmap1).flatten(0, 1)
    rows = max(_CHUNK // (n * c * len(offsets)), 1)

    def lookup(positions: Tensor) -> Tensor:
        centres = positions.flatten(2).movedim(1, -1)[:, :, None]  # n (h w) 1 2
        chunks = []
        for q, centre in zip(query.split(rows, 2), centres.split(rows, 1), strict=True):
            found = [_sample(level, centre / 2**k + offsets) for k, level in enumerate(pyramid)]  # n c rows K*K
            chunks.append(torch.cat([torch.einsum("ncq,ncqk->nkq", q, f) for f in found], 1))
        return torch.cat(chunks, 2).unflatten(2, (h, w))

    return lookup


def convex_upsample(flow: Tensor, mask: Tensor) -> Tensor:
    """Upsample a flow (n, 2, h, w) to (n, 2, 8h, 8w) by convex combinations of 3x3 coarse neighbours.

    mask (n, 9*64, h, w) holds the logits of the weights (Teed and Deng 2020, section 3.3).
    """
    n, _, h, w = flow.shape
    s = _STRIDE
    weights = mask.view(n, 1, 9, s, s, h, w).softmax(dim=2)
    near = F.unfold(s * flow, 3, padding=1).view(n, 2, 9, 1, 1, h, w)
    fine = (weights * near).sum(dim=2)  # n 2 s s h w
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(n, 2, s * h, s * w)


class RAFT(nn.Module):
    """Optical flow by RAFT, with the state-dict names of `raft-things.pth` and of `flownet_model.` (SPEC 2.5).

    `model` "normal" (5 257 536 parameters) or "small" (990 162); `iterations` refinements. The original files prefix
    every name with `module.`, which `ldm.weights.checkpoint` strips; they hold neither mean nor std.
    `scaling`: the weights were trained on images in [-1, 1]. "trained" maps the inputs from [0, 1] to that range;
    "released" does not, as in the released MGLD-VSR (bug B11), to reproduce its numbers.
    `volume_limit`: maximum number of stored correlations (4 bytes each; the default is 1 GiB). Larger batches are
    split; if a single pair exceeds the limit (1M pixels), correlations are computed on demand, about 5 times slower.

    `statistics` of the norms of the context encoder: "trained" uses the stored ones, "released" those of the images,
    as in the released StableVSR, whose RAFT is never in evaluation mode. A batch is then not split.

    The weights of torchvision's raft_large fit `model="normal"` (`ldm.weights.names`), whose default is 12 iterations.

    A fixed estimator: always in evaluation mode, and in float32 under autocast. Raises ValueError for an unknown
    `model`, `scaling` or `statistics`.
    """

    constant_buffers: tuple[str, ...] = ()  # unlike SpyNet's, the recorded names hold no mean or std

    def __init__(
        self,
        model: str = "normal",
        iterations: int = 10,
        scaling: str = "trained",
        volume_limit: int = 2**28,
        statistics: str = "trained",
    ):
        super().__init__()
        if model not in ("normal", "small"):
            raise ValueError(f"got RAFT model {model!r}, expected 'normal' or 'small'")
        if scaling not in ("trained", "released"):
            raise ValueError(f"got RAFT scaling {scaling!r}, expected 'trained' or 'released'")
        if statistics not in ("trained", "released"):
            raise ValueError(f"got RAFT statistics {statistics!r}, expected 'trained' or 'released'")
        small = model == "small"
        self.iterations, self.scaling, self.volume_limit = iterations, scaling, volume_limit
        self.statistics = statistics
        self.hidden, self.context, self.radius = (96, 64, 3) if small else (128, 128, 4)
        widths, features = ((32, 64, 96), 128) if small else ((64, 96, 128), 256)
        both = self.hidden + self.context
        self.fnet = FlowFeatureEncoder(widths, features, norm="instance", bottleneck=small)
        self.cnet = FlowFeatureEncoder(widths, both, norm="none" if small else "batch", bottleneck=small)
        self.update_block = FlowUpdateBlock(small, self.hidden, self.context, _LEVELS * (2 * self.radius + 1) ** 2)
        for module in self.modules():
            if isinstance(module, FlowBatchNorm):
                module.own = statistics == "released"
        self.eval()

    def train(self, mode: bool = True) -> "RAFT":
        """Keep evaluation mode in any mode of the surrounding model."""
        return super().train(False)

    def forward(
        self, img1: Tensor, img2: Tensor, *, iterations: int | None = None, flow_init: Tensor | None = None
    ) -> Tensor:
        """Estimate the flow from img1 to img2 (n, 3, h, w) in [0, 1] -> (n, 2, h, w) float32, in pixels.

        Images are padded by replication to multiples of 8, at least 64. `iterations` overrides the constructor's.
        `flow_init` (n, 2, h/8, w/8) is the initial flow of the padded images, in pixels of that grid (default: zero).
        Raises ValueError for different shapes, for fewer than one iteration, and for weights in half precision.
        """
        if img1.ndim != 4 or img1.shape[1] != 3 or img1.shape != img2.shape:
            raise ValueError(f"got {tuple(img1.shape)} and {tuple(img2.shape)}, expected two (n, 3, h, w) of one shape")
        iterations = self.iterations if iterations is None else iterations
        if iterations < 1:
            raise ValueError(f"got {iterations} RAFT iterations, expected at least 1")
        dtype = self.fnet.conv1.weight.dtype
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"got RAFT weights in {dtype}, expected torch.float32; call .float() on the flow network")
        if self.scaling == "trained":
            img1, img2 = 2 * img1.to(dtype) - 1, 2 * img2.to(dtype) - 1
        h, w = img1.shape[-2:]
        extra_h, extra_w = (max(-(-side // _STRIDE) * _STRIDE, _SMALLEST) - side for side in (h, w))
        top, left = extra_h // 2, extra_w // 2
        edges = (left, extra_w - left, top, extra_h - top)
        img1, img2 = (F.pad(x.to(dtype), edges, mode="replicate") for x in (img1, img2))
        # Pairs are independent: process as many at a time as the correlation volume allows.
        start = self._start(flow_init, img1)
        rows = max(self.volume_limit // start[0, 0].numel() ** 2, 1) if self.statistics == "trained" else len(img1)
        with torch.autocast(img1.device.type, enabled=False):
            parts = zip(img1.split(rows), img2.split(rows), start.split(rows), strict=True)
            flows = [self._flow(x, y, iterations, flow) for x, y, flow in parts]
        return torch.cat(flows)[..., top : top + h, left : left + w].float()

    @staticmethod
    def _start(flow_init: Tensor | None, img1: Tensor) -> Tensor:
        """Return the initial flow (n, 2, h/8, w/8), in pixels of the feature grid, for padded images."""
        n, _, h, w = img1.shape
        shape = (n, 2, h // _STRIDE, w // _STRIDE)
        if flow_init is None:
            return img1.new_zeros(shape)
        if tuple(flow_init.shape) != shape:
            raise ValueError(f"got flow_init of shape {tuple(flow_init.shape)}, expected {shape}")
        return flow_init.to(img1)

    def _flow(self, img1: Tensor, img2: Tensor, iterations: int, flow: Tensor) -> Tensor:
        fmap1, fmap2 = self.fnet(torch.cat((img1, img2))).chunk(2)  # n 256|128 h/8 w/8
        pairs = fmap1.shape[0] * fmap1.shape[-2:].numel() ** 2
        correlation = correlation_by_volume if pairs <= self.volume_limit else correlation_on_demand
        lookup = correlation(fmap1, fmap2, radius=self.radius)
        hidden, context = self.cnet(img1).split((self.hidden, self.context), dim=1)
        hidden, context = torch.tanh(hidden), torch.relu(context)

        grid = pixel_grid(*fmap1.shape[-2:], like=fmap1)
        for _ in range(iterations):
            hidden, change = self.update_block(hidden, context, lookup(grid + flow), flow)
            flow = flow + change
        return self._upsample(flow, hidden)

    def _upsample(self, flow: Tensor, hidden: Tensor) -> Tensor:
        mask = self.update_block.mask
        if mask is None:
            size = tuple(_STRIDE * side for side in flow.shape[-2:])
            return _STRIDE * F.interpolate(flow, size=size, mode="bilinear", align_corners=True)
        return convex_upsample(flow, 0.25 * mask(hidden))  # 0.25 balances the gradients, as in the original
