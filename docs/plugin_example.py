"""A token mixer of one's own: depthwise 3x3 and its mirror image, one after the other."""

from torch import Tensor, nn

from search_spaces.layers import ConvNorm
from search_spaces.mixers import TokenMixer


class TwiceConv(TokenMixer):
    """Two depthwise convolutions, each with BatchNorm, which folds into them by itself."""

    kernels = (3, 5)
    norm_inside = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.first = ConvNorm(dim, dim, kernel, groups=dim)
        self.second = ConvNorm(dim, dim, kernel, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def output_layer(self) -> nn.Module:
        return self.second.norm


MIXERS = {"twice": TwiceConv}
