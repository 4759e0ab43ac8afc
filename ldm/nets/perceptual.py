"""LPIPS: distance between VGG16 features, weighted per channel (Zhang et al. 2018)."""

import torch
from torch import Tensor, nn

BUILDABLE = ("LPIPS",)  # what a configuration may name as a target

# VGG16's `features`: convolutions of one block, then the pooling that opens the next one.
CONVOLUTIONS = (2, 2, 3, 3, 3)
WIDTH_FACTORS = (1, 2, 4, 8, 8)


class ScalingLayer(nn.Module):
    """Map images in [-1, 1] to VGG's input: ImageNet mean and deviation, carried over from [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class VGGSlices(nn.Module):
    """VGG16's convolutions (Simonyan and Zisserman 2015) in five slices; layers keep their numbers in `features`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        number, channels = 0, 3
        for k, (convolutions, factor) in enumerate(zip(CONVOLUTIONS, WIDTH_FACTORS, strict=True), start=1):
            layers = [nn.MaxPool2d(2, 2)] if k > 1 else []
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width * factor, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width * factor
            part = nn.Sequential()
            for layer in layers:
                part.add_module(str(number), layer)
                number += 1
            self.add_module(f"slice{k}", part)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(n, 3, h, w) -> the last ReLU of each block, at 1, 1/2, 1/4, 1/8, 1/16 of the size."""
        features = []
        for part in self.children():
            x = part(x)
            features.append(x)
        return features


class ChannelHead(nn.Module):
    """One weight per channel: a 1x1 convolution without bias, behind a dropout that acts in train mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def unit_length(x: Tensor) -> Tensor:
    """Each pixel's channels divided by their norm (plus 1e-10); the gradient at an all-zero pixel is finite."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)


class LPIPS(nn.Module):
    """Perceptual distance of two images; every parameter is frozen, gradients pass through to the images.

    Names are those of `loss.perceptual_loss.` in `video_vae_cfw.ckpt`, which holds the trained weights; nothing is
    downloaded, and fresh weights are random. A distance is measured in eval mode: in train mode half of what the heads
    read is dropped at random.

    Args:
        width: channels of the first VGG block (64 in VGG16; smaller for toy runs).
    """

    def __init__(self, *, width: int = 64) -> None:
        super().__init__()
        self.scaling_layer = ScalingLayer()
        self.net = VGGSlices(width)
        for k, factor in enumerate(WIDTH_FACTORS):
            self.add_module(f"lin{k}", ChannelHead(width * factor))
        self.requires_grad_(False)

    def heads_trained(self) -> bool:
        """Whether the heads can be trained ones: those are never negative, random ones always are somewhere."""
        return all((getattr(self, f"lin{k}").model[1].weight >= 0).all() for k in range(len(WIDTH_FACTORS)))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images a, b (n, 3, h, w) in [-1, 1], sides of at least 16 pixels -> distances (n, 1, 1, 1) in float32.

        Sum over the five levels of the spatial mean of head((unit_length(f(a)) - unit_length(f(b)))**2).
        """
        distance = 0.0
        levels = zip(self.net(self.scaling_layer(a)), self.net(self.scaling_layer(b)), strict=True)
        for k, (fa, fb) in enumerate(levels):
            difference = (unit_length(fa.float()) - unit_length(fb.float())) ** 2
            head = getattr(self, f"lin{k}")
            distance = distance + head(difference.to(fa.dtype)).float().mean(dim=(2, 3), keepdim=True)
        return distance
