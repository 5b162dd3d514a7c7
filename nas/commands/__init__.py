"""The commands of `nas`, a file per group: each parses, calls the `nas` face and prints."""
