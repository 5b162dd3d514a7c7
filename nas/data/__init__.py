"""Images: the embedded procedural set, image folders, and the data sets that timm knows by name (`nas.data.load`)."""
