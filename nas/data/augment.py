"""Training-time variation of a batch, on tensors, on the device of the batch."""

from __future__ import annotations

import numpy as np
import torch


def augment(
    batch: torch.Tensor,
    generator: torch.Generator | None = None,
    flip: bool = True,
    *,
    share: np.ndarray | None = None,
    joint: int | None = None,
) -> torch.Tensor:
    """Shift every image by up to an eighth of its side and, with `flip`, mirror half of them left to right.

    What a shift uncovers is filled by reflection. batch: [n, channels, height, width]; the result has its
    shape and type. The same generator state gives the same result. (The random crop after padding of He et
    al., "Deep residual learning", 2016, section 4.2, as one gather.)
    share, joint: the batch is the rows `share` of one of `joint` images, and is varied as it would be there.
    """
    n, _, height, width = batch.shape
    drawn = joint or n
    picks = slice(None) if share is None else torch.from_numpy(share).to(batch.device)
    rows = _shifted(drawn, height, batch.device, generator)[picks]
    columns = _shifted(drawn, width, batch.device, generator)[picks]
    if flip:
        mirrored = _draw(0, 2, drawn, batch.device, generator).bool()[picks]
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    image = torch.arange(n, device=batch.device)
    picked = batch.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # channels last in memory


def _shifted(n: int, side: int, device: torch.device, generator: torch.Generator | None) -> torch.Tensor:
    """Source index [n, side] of every row or column after a random shift, reflected at the borders."""
    reach = side // 8
    shift = _draw(-reach, reach + 1, n, device, generator)
    index = (torch.arange(side, device=device)[None, :] + shift[:, None]).abs()
    return (side - 1) - ((side - 1) - index).abs()


def _draw(low: int, high: int, n: int, device: torch.device, generator: torch.Generator | None) -> torch.Tensor:
    """Integers [n] in [low, high), drawn where the generator lives."""
    source = generator.device if generator is not None else device
    return torch.randint(low, high, (n,), generator=generator, device=source).to(device)
