"""Quantities with units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.units import BYTES, COUNT, FRACTION, JOULES, SECONDS, UNITS, format_quantity, parse_quantity


@pytest.mark.parametrize(
    ("text", "quantity", "value"),
    [
        ("2ms", SECONDS, 2e-3),
        (" 1.5 us ", SECONDS, 1.5e-6),
        ("3µs", SECONDS, 3e-6),
        ("1e-3s", SECONDS, 1e-3),
        (".5mJ", JOULES, 5e-4),
        ("4MB", BYTES, 4e6),
        ("4MiB", BYTES, 4 * 2**20),
        ("300M", COUNT, 3e8),
        ("7", COUNT, 7),
        ("80%", FRACTION, 0.8),
        ("0.8", FRACTION, 0.8),
    ],
)
def test_reads(text, quantity, value):
    assert parse_quantity(text, quantity) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "quantity", "said"),
    [
        ("2", SECONDS, "no unit; write one of s, ms"),
        ("2 min", SECONDS, "'min' is unknown"),
        ("1MJ", JOULES, "'MJ' is unknown"),
        ("fast", SECONDS, "not a number"),
        ("-2ms", SECONDS, "not a number"),
        ("80", FRACTION, "more than 100%"),
    ],
)
def test_refuses_and_says_why(text, quantity, said):
    with pytest.raises(ValueError, match=said):
        parse_quantity(text, quantity)


@given(st.sampled_from(sorted(UNITS)), st.floats(1e-9, 0.999))
def test_what_is_shown_can_be_read_again(quantity, value):
    assert parse_quantity(format_quantity(value, quantity), quantity) == pytest.approx(value, rel=1e-3)
