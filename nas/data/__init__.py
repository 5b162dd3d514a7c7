"""Images: the embedded procedural set, image folders, and the data sets that timm knows by name."""

from nas.data.augment import augment
from nas.data.bundle import DataBundle, DataError, ImageSource
from nas.data.load import load_data

__all__ = ["DataBundle", "DataError", "ImageSource", "augment", "load_data"]
