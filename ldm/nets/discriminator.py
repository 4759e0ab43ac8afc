"""The patch discriminator of pix2pix (Isola et al. 2017), in the form of taming-transformers (Esser et al. 2021)."""

from torch import Tensor, nn

BUILDABLE = ("PatchGAN",)  # what a configuration may name as a target


class PatchGAN(nn.Module):
    """Image in [-1, 1] -> one realness score per patch (70 x 70 pixels by default); layers are named `main.K`.

    Args:
        in_channels: of the image.
        ndf: channels after the first convolution; doubled by each further one, up to 8 times `ndf`.
        n_layers: convolutions of stride 2.
    """

    def __init__(self, *, in_channels: int = 3, ndf: int = 64, n_layers: int = 3) -> None:
        super().__init__()
        widths = [ndf * min(2**k, 8) for k in range(n_layers + 1)]
        layers = [nn.Conv2d(in_channels, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for k in range(1, n_layers + 1):
            stride = 2 if k < n_layers else 1
            # No bias: the following norm would remove it.
            conv = nn.Conv2d(widths[k - 1], widths[k], 4, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(widths[k]), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)
        for layer in self.main:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, H, W) -> logits (n, 1, about H/8, about W/8); higher means more like a real image."""
        return self.main(x)
