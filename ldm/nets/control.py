"""The Temporal Conditioning Module of StableVSR: a ControlNet (Zhang et al. 2023) over the x4 upscaler's denoiser."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nets.layers import zero_init
from ldm.nets.upscaler import Residuals, UpscalerEncoder, UpscalerPlan

BUILDABLE = ("TemporalConditioning",)  # by configurations


class ConditionEmbedding(nn.Module):
    """A picture (n, 3, H, W) as a map (n, out_channels, H / f, W / f), f = 2 ** (len(widths) - 1); starts as zero.

    SiLU follows every convolution but the last.
    """

    def __init__(self, widths: Sequence[int], out_channels: int, *, in_channels: int = 3):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for before, after in pairwise(widths):
            self.blocks.append(nn.Conv2d(before, before, 3, padding=1))
            self.blocks.append(nn.Conv2d(before, after, 3, padding=1, stride=2))
        self.conv_out = zero_init(nn.Conv2d(widths[-1], out_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv_in(x))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class TemporalConditioning(UpscalerEncoder):
    """From the denoiser's input and a guidance picture to what is added to the denoiser's maps; starts as nothing.

    State-dict names are those of diffusers' ControlNetModel.

    Args:
        in_channels: of the denoiser.
        condition_widths: channels of the picture's embedding, one level for every halving.
        plan: of the denoiser.

    Origin: StableVSR (Rota et al., ECCV 2024); Zhang et al. 2023.
    """

    def __init__(
        self,
        *,
        in_channels: int = 7,
        condition_widths: Sequence[int] = (64, 128, 256),
        plan: UpscalerPlan | None = None,
    ):
        plan = (plan or UpscalerPlan()).completed()
        super().__init__(in_channels=in_channels, plan=plan)
        self.upscaling = 2 ** (len(condition_widths) - 1)
        self.controlnet_cond_embedding = ConditionEmbedding(condition_widths, plan.widths[0])
        self.controlnet_down_blocks = nn.ModuleList(zero_init(nn.Conv2d(c, c, 1)) for c in self.skip_channels)
        last = plan.widths[-1]
        self.controlnet_mid_block = zero_init(nn.Conv2d(last, last, 1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor, condition: Tensor, *, scale: float = 1.0) -> Residuals:
        """Residuals for the denoiser of the same x, t and context.

        Args:
            x, t, context: as for the denoiser, (n, in_channels, h, w), (1 | n,) and (1 | r | n, tokens, context_dim).
            condition: guidance pictures (n, 3, h * upscaling, w * upscaling), RGB around [-1, 1].
            scale: factor of all residuals.

        Raises:
            ValueError: a condition of another size.
        """
        expected = (x.shape[0], 3, x.shape[-2] * self.upscaling, x.shape[-1] * self.upscaling)
        if tuple(condition.shape) != expected:
            raise ValueError(f"got a condition {tuple(condition.shape)}, expected {expected}")
        added = self.controlnet_cond_embedding(condition.to(self.conv_in.weight.dtype))
        skips, middle, _ = self.encode(x, t, context, added=added)
        convs = (*self.controlnet_down_blocks, self.controlnet_mid_block)
        maps = [conv(h) * scale for conv, h in zip(convs, (*skips, middle), strict=True)]
        return Residuals(maps[:-1], maps[-1])
