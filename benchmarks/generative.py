"""Two generative workloads that an NPU is advertised with, as modules of their published dimensions.

No weights: they are traced on the meta device and costed. Stable Diffusion 1.5: the U-Net, twice per step for
classifier-free guidance, and the decoder of the image; the text encoder (one pass over 77 tokens) is left out.
LLaMA2-7B: one token of a dialogue, its keys and values of the tokens before read from memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hw_models import Target, estimate
from nas.bits import put_precision
from nas.trace import trace_module

TOKENS_BEFORE = 512
"""Length of the dialogue before the token."""

GROUPS = 32
"""Of every GroupNorm of Stable Diffusion."""


class LlamaLayer(nn.Module):
    """A layer of LLaMA2-7B for one token (Touvron et al. 2023, Table 1 and Section 2.2): hidden size 4,096, 32 heads,
    gated MLP of 11,008, RMSNorm, rotary embedding.

    Inputs: [1, 1, 4096] the token; [1, 32, tokens, 128] keys and values of the tokens before.
    """

    def __init__(self, width: int = 4096, heads: int = 32, hidden: int = 11_008) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)
        self.register_buffer("cos", torch.empty(width // heads))
        self.register_buffer("sin", torch.empty(width // heads))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(1, 1, self.heads, -1).transpose(1, 2)

    def _rotate(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-other, one], dim=-1) * self.sin

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = self._rotate(self._split(self.q(y))), self._rotate(self._split(self.k(y))), self._split(self.v(y))
        scores = q @ torch.cat([keys, k], dim=2).transpose(2, 3) * (q.shape[-1] ** -0.5)
        mixed = torch.softmax(scores, dim=-1) @ torch.cat([values, v], dim=2)
        x = x + self.o(mixed.transpose(1, 2).reshape(x.shape))
        y = self.norm_mlp(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


def llama_tokens_per_s(target: Target, precision: str, layers: int = 32, vocabulary: int = 32_000) -> float:
    """Tokens a second of LLaMA2-7B at batch 1."""
    cache = (1, 32, TOKENS_BEFORE, 128)
    with torch.device("meta"):
        layer, head = LlamaLayer(), nn.Sequential(nn.RMSNorm(4096), nn.Linear(4096, vocabulary, bias=False))
    layer_s = _seconds(layer, [(1, 1, 4096), cache, cache], target, precision)
    head_s = _seconds(head, [(1, 1, 4096)], target, precision)
    return 1.0 / (layers * layer_s + head_s)


class ResBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice, with the embedding of the time step added between (if there is one)."""

    def __init__(self, channels: int, out: int, embedding: int = 0) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, channels), nn.Conv2d(channels, out, 3, padding=1)
        self.time = nn.Linear(embedding, out) if embedding else None
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, out), nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        if self.time is not None and time is not None:
            y = y + self.time(functional.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(functional.silu(self.norm2(y)))


class Attention(nn.Module):
    """Of tokens [batch, tokens, width] to themselves or to a context [batch, tokens, context]."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.k, self.v = nn.Linear(context, width, bias=False), nn.Linear(context, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (self.q(x), self.k(context), self.v(context))
        )
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SpatialTransformer(nn.Module):
    """One transformer layer over the positions of a map, with attention to the text [batch, 77, 768]."""

    def __init__(self, width: int, context: int = 768, heads: int = 8) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.inward, self.outward = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own, self.text = Attention(width, width, heads), Attention(width, context, heads)
        self.up, self.down = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        y = self.inward(self.norm(x)).flatten(2).transpose(1, 2)
        first = self.norms[0](y)
        y = y + self.own(first, first)
        y = y + self.text(self.norms[1](y), text)
        value, gate = self.up(self.norms[2](y)).chunk(2, dim=-1)
        y = y + self.down(value * functional.gelu(gate))
        return x + self.outward(y.transpose(1, 2).reshape(x.shape))


class DiffusionUNet(nn.Module):
    """U-Net of Stable Diffusion 1 (Rombach et al. 2022, Table 15 and the v1 configuration): 320 channels times 1, 2, 4,
    4, two residual blocks a level, transformers in the first three; 859,520,964 parameters.

    Inputs: [batch, 4, 64, 64] the latent, [batch, 77, 768] the text, [batch, 320] the sinusoids of the time step.
    """

    def __init__(self, base: int = 320, multiples: tuple[int, ...] = (1, 2, 4, 4), blocks: int = 2) -> None:
        super().__init__()
        widths, embedding = [base * multiple for multiple in multiples], 4 * base
        self.time = nn.Sequential(nn.Linear(base, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.first = nn.Conv2d(4, base, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept, channels = [base], base
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(self._step(channels, width, embedding, level < len(widths) - 1))
                channels = width
                kept.append(channels)
            if level < len(widths) - 1:
                self.down.append(nn.ModuleList([nn.Conv2d(channels, channels, 3, stride=2, padding=1)]))
                kept.append(channels)
        self.middle = nn.ModuleList(
            [
                ResBlock(channels, channels, embedding),
                SpatialTransformer(channels),
                ResBlock(channels, channels, embedding),
            ]
        )
        for level, width in reversed(list(enumerate(widths))):
            for block in range(blocks + 1):
                step = self._step(channels + kept.pop(), width, embedding, level < len(widths) - 1)
                channels = width
                if level and block == blocks:
                    step.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)))
                self.up.append(step)
        self.last = nn.Sequential(nn.GroupNorm(GROUPS, base), nn.SiLU(), nn.Conv2d(base, 4, 3, padding=1))

    @staticmethod
    def _step(channels: int, width: int, embedding: int, attends: bool) -> nn.ModuleList:
        return nn.ModuleList([ResBlock(channels, width, embedding), *([SpatialTransformer(width)] if attends else [])])

    def forward(self, x: Tensor, text: Tensor, sinusoids: Tensor) -> Tensor:
        time = self.time(sinusoids)
        x = self.first(x)
        kept = [x]
        for step in self.down:
            x = _run(step, x, text, time)
            kept.append(x)
        x = _run(self.middle, x, text, time)
        for step in self.up:
            x = _run(step, torch.cat([x, kept.pop()], dim=1), text, time)
        return self.last(x)


def _run(step: nn.ModuleList, x: Tensor, text: Tensor, time: Tensor) -> Tensor:
    for module in step:
        if isinstance(module, ResBlock):
            x = module(x, time)
        else:
            x = module(x, text) if isinstance(module, SpatialTransformer) else module(x)
    return x


def image_decoder(base: int = 128, multiples: tuple[int, ...] = (4, 4, 2, 1), blocks: int = 3) -> nn.Module:
    """Decoder of the latent [batch, 4, 64, 64] to an image of 512 x 512 (Rombach et al. 2022, f = 8), without the one
    attention in its middle.
    """
    channels = base * multiples[0]
    layers: list[nn.Module] = [nn.Conv2d(4, channels, 3, padding=1)]
    layers += [ResBlock(channels, channels) for _ in range(2)]
    for level, multiple in enumerate(multiples):
        for _ in range(blocks):
            layers.append(ResBlock(channels, base * multiple))
            channels = base * multiple
        if level < len(multiples) - 1:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1)]
    return nn.Sequential(*layers, nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, 3, 3, padding=1))


def stable_diffusion_s(target: Target, precision: str, steps: int = 20) -> float:
    """Seconds of an image of 512 x 512: `steps` steps, each with and without the text, and the decoder."""
    with torch.device("meta"):
        unet, decoder = DiffusionUNet(), image_decoder()
    step_s = _seconds(unet, [(2, 4, 64, 64), (2, 77, 768), (2, 320)], target, precision)
    return steps * step_s + _seconds(decoder, [(1, 4, 64, 64)], target, precision)


def _seconds(module: nn.Module, shapes: Sequence[tuple[int, ...]], target: Target, precision: str) -> float:
    return estimate(put_precision(trace_module(module.eval(), list(shapes)), precision), target).latency_s
