"""Reber's grammar: strings that an independent automaton accepts, and the symbols that may follow."""

import re

import numpy as np
import pytest

from ellzero.data.grammar import SYMBOLS, reber
from ellzero.errors import InputError

# the automaton as a regular expression: from T, S* X, then (X T* V P)* leads to S; from P, T* V leads on
AFTER_X = r"(?:XT*VP)*(?:S|XT*VV)"
PLAIN = rf"B(?:TS*X{AFTER_X}|PT*V(?:V|P{AFTER_X}))E"


@pytest.mark.parametrize("embedded", [False, True])
def test_every_string_is_in_the_language_and_every_symbol_is_legal(embedded):
    strings = reber(300, embedded=embedded, seed=3)
    pattern = rf"B(?:T{PLAIN}T|P{PLAIN}P)E" if embedded else PLAIN
    for row in range(300):
        text = strings.text(row)
        assert re.fullmatch(pattern, text), text
        for place, following in enumerate(text[1:]):
            assert strings.legal[row, place, SYMBOLS.index(following)]
        assert not strings.legal[row, len(text) - 1 :].any()
        assert (strings.symbols[row, len(text) :] == -1).all()
    assert set(strings.legal.sum(-1).ravel()) == {0, 1, 2}
    assert len({strings.text(row) for row in range(300)}) > 40


def test_what_was_second_is_the_only_symbol_before_the_last():
    strings = reber(50)
    for row in range(50):
        text = strings.text(row)
        legal = [SYMBOLS[i] for i in np.flatnonzero(strings.legal[row, len(text) - 3])]
        assert legal == [text[1]] == [text[-2]]


def test_strings_repeat_and_keep_to_the_length():
    np.testing.assert_array_equal(reber(20, seed=1).symbols, reber(20, seed=1).symbols)
    assert reber(20, most=12).symbols.shape[1] <= 12
    for settings in ({"n": 0}, {"n": 2, "most": 3}):
        with pytest.raises(InputError, match=r"^n|^most"):
            reber(**settings)
