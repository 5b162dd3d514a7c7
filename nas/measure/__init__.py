"""Times blocks and whole networks on a device at hand: chosen by design, checked, recorded as they are finished."""
