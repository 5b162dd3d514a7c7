"""Quantization of a candidate: folding, calibration on training images, fake quantization by its policy."""

from nas.quantize.assemble import Prepared, QuantizedNetwork, prepare, restore
from nas.quantize.calibration import Calibration

__all__ = ["Calibration", "Prepared", "QuantizedNetwork", "prepare", "restore"]
