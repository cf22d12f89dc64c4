"""Each range holds its ends as its brackets say, and nothing else; refusals are one sentence."""

import math

import pytest

from diffem.runtime.errors import UserError
from diffem.runtime.ranges import RANGES, Range, check, whole


@pytest.mark.parametrize("key", RANGES)
def test_a_range_holds_its_ends_and_nothing_beyond(key: str) -> None:
    held = RANGES[key]
    for end, bracket, away in ((held.low, held.ends[0], -1), (held.high, held.ends[1], 1)):
        if math.isfinite(end):
            beyond = end + away if held.whole else math.nextafter(end, away * math.inf)
            assert refuses(key, end) == (bracket in "()")
            assert refuses(key, beyond)
    for value in (True, math.nan, "x", {}, [[1.0]], [None, 1.0], [1.0, "x"]):
        assert refuses(key, value) or (value == [None, 1.0] and None in held.also)
    for value in (None, math.inf, -math.inf, "auto"):
        assert refuses(key, value) == (value not in held.also)
    assert refuses(key, 1.5) or not held.whole


def refuses(key: str, value: object) -> bool:
    """Returns whether a value is refused; else it comes back as it was given."""
    try:
        assert check(key, value) is value
    except UserError as error:
        name = key.partition("@")[0]
        assert str(error).startswith(f"{name} must be") or str(error).startswith(f"{name}: each")
        assert repr(value) in str(error) or isinstance(value, list)
        assert "\n" not in str(error)
        return True
    return False


def test_lists_and_pairs() -> None:
    assert not refuses("network.blocks", [1, 2]) and refuses("network.blocks", [1, 0])
    assert not refuses("corruption.sigma", [0.5, 2]) and refuses("corruption.sigma", [2, 0.5])
    assert refuses("corruption.sigma", [1, 2, 3]) and refuses("em.rounds", [1])
    assert not refuses("dataset.limits", [None, 5]) and refuses("dataset.limits", [None, 0])


def test_a_key_without_a_range_is_a_mistake_in_the_program() -> None:
    with pytest.raises(KeyError):
        check("corruption.mine", 1.0)
    assert check("corruption.mine", 1.0, own=Range(0, 1)) == 1
    with pytest.raises(UserError, match=r"em\.rounds must be a whole number of at least 2, got 1"):
        check("em.rounds", 1, own=whole(2))
