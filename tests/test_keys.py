"""Keys are found in a text as people write it, whole, and none is taken for another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bench.memory.keys import KeyIndex, key_id, key_name, units

CHOICES = [chr(code) for code in (*range(32, 127), 0xE9, 0x301, 0xFB01, 0xFF21, 0x130, 0x4EAC, 0x902, 0x1F600, 0xA0)]


def index(*keys):
    return KeyIndex({key_name(key): (n,) for n, key in enumerate(keys)})


def found(keys, text):
    """What stands in the text where the longest key is found."""
    place = keys.find(text)
    return place and text[place.start : place.end]


def test_the_longest_key_wins_and_the_last_of_equals():
    keys = index("gate", "the east gate", "door", "code")
    assert found(keys, "Is the door of the east gate shut?") == "the east gate"
    assert found(keys, "door or code?") == "code"
    assert found(keys, "a window") is None
    assert found(keys, "") is None
    assert found(index(), "door") is None


def test_what_ends_a_key():
    keys = index("east gate", "the east gate", "Straße 9")
    split = units("By the East gate")
    assert [keys.ending(split, end) for end in range(1, 5)] == [0, 0, 0, 3]
    assert [keys.ending(split, 4, shortest) for shortest in (2, 3, 4)] == [3, 3, 0]
    assert keys.ending(units("east gate"), 2) == 2
    assert [keys.longest(last) for last in ("gate", "9", "east")] == [3, 2, 0]
    assert [keys.ends_with(text) for text in ("gate", "ate", "e", "9", "gat", "te9", "zgate")] == [True] * 4 + [
        False
    ] * 3
    assert not index().ends_with("a")


@pytest.mark.parametrize("text", [
    "capital:france", "Look up CAPITAL : France.", "(CAPITAL:France)", '"CAPITAL:France",', "**CAPITAL:France**",
    "CAPITAL:France's?", "CAPITAL:\nFrance",
    "ＣＡＰＩＴＡＬ:Ｆｒａｎｃｅ", "CAPITAL:Françe", "x\n\n> CAPITAL:France\n",
])  # fmt: skip
def test_a_key_is_found_in_another_case_width_or_spacing_and_beside_any_mark(text):
    assert index("CAPITAL:France", "CAPITAL:Chad").find(text).key == "capital : france"


@pytest.mark.parametrize(
    "text", ["CAPITAL:Frances", "SUBCAPITAL:France", "CAPITAL-France", "CAPITAL:Fra nce", "my_CAPITAL:France"]
)
def test_a_key_is_not_found_within_a_longer_word_nor_without_its_marks(text):
    assert index("CAPITAL:France").find(text) is None


def test_a_key_ends_a_question_whatever_follows():
    key = "Which door code opens the east gate?"
    for text in (key, f"{key}, and why?", f"Given {key}, what then?", f'"{key}"'):
        assert found(index(key), text) == key


@pytest.mark.parametrize(("text", "split"), [
    ("首都は東京です", 7), ("서울은", 3), ("ข้าว", 4), ("दिल्ली", 1),
    ("naïve", 1), ("a_b2", 1), ("☁\ufe0f", 2), ("½", 3), ("ﬁne", 1),
])  # fmt: skip
def test_where_words_are_not_set_apart_each_letter_is_a_unit(text, split):
    assert len(units(text)) == split
    assert found(index(text), f"what is {text}?") == text


@given(st.text(alphabet=CHOICES, max_size=20))
def test_units_lie_in_the_text_in_order_and_a_name_is_its_own_name(text):
    split = units(text)
    assert all(0 <= unit.start < unit.end <= len(text) for unit in split)
    assert [unit.start for unit in split] == sorted(unit.start for unit in split)
    assert not any(unit.text.isspace() or " " in unit.text for unit in split)
    assert key_name(key_name(text)) == key_name(text)


def test_an_index_survives_its_array_and_stays_as_it_is():
    keys = index("east gate", "Straße 9")
    again = KeyIndex.from_array(keys.to_array())
    assert again.tokens == keys.tokens
    assert KeyIndex.from_array(index().to_array()).tokens == {}
    assert "east gate" not in keys.without(["east gate"])
    assert "west gate" in keys.with_key("west gate", (7,))
    assert "east gate" in keys
    assert "west gate" not in keys


def test_names_have_numbers_of_their_own():
    assert len({key_id(f"key {n}") for n in range(10000)}) == 10000
    assert all(0 <= key_id(str(n)) < 1 << 62 for n in range(100))
