"""Numbers as they are typed."""

import argparse

import pytest

from diffusers_videogpt.arguments import MOST_DIGITS, any_seed, natural_int, positive_int, whole_number


@pytest.mark.parametrize("text, number", [("0", 0), ("-0", 0), ("007", 7), ("1000000000", 10**9)])
def test_whole_numbers(text, number):
    assert natural_int(text) == number


@pytest.mark.parametrize("text", ["-1", "-5", "1.0", "", "x", "٣x", f"-{'9' * 5000}"])
def test_what_is_none_or_too_small(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no whole number of 0 or more"):
        natural_int(text)


@pytest.mark.parametrize("digits", [10, MOST_DIGITS, MOST_DIGITS + 1, 5000])
def test_what_is_too_large_by_any_number_of_digits(digits):
    with pytest.raises(argparse.ArgumentTypeError, match="is too large: at most 1000000000"):
        positive_int("9" * digits)


def test_negative_ranges():
    assert any_seed("-5") == -5 and any_seed(str(-(2**63))) == -(2**63)
    assert whole_number(at_least=-3, at_most=-2)("-3") == -3
    with pytest.raises(argparse.ArgumentTypeError, match="is no whole number of -9223372036854775808 or more"):
        any_seed(str(-(2**63) - 1))
