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
    """One weight per channel: dropout (in training mode), then a 1x1 convolution without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def unit_length(x: Tensor) -> Tensor:
    """Normalise the channels of each pixel to unit length (norm plus 1e-10); gradients at zero pixels are finite."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)


class LPIPS(nn.Module):
    """Perceptual distance of two images. Parameters are frozen; the distance is differentiable in the images.

    Parameter names are those of `loss.perceptual_loss.` in `video_vae_cfw.ckpt`, which holds the trained weights.
    Nothing is downloaded; initial weights are random. Use evaluation mode: in training mode, dropout is active.

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
        """Whether the heads may be trained: trained weights are never negative, random ones are."""
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
