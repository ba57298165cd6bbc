"""The ways of asking for what was trained, and what is right in each: the four questions of knowledge editing.

A way is the `split` of a record. Two trained items never share a prompt, and no prompt of an untrained way is trained.
"""

from __future__ import annotations

from typing import NamedTuple


class Way(NamedTuple):
    """A way of asking.

    Attributes:
        name: `split` in records.
        group: what it tells about a variant: reliability, generality, portability, locality, or heldout.
        asked: how the question is asked, in a few words.
        right: what answer is right, in a few words.
    """

    name: str
    group: str
    asked: str
    right: str


UNTOUCHED, VALUE = "the untouched model's answer", "the value"
WAYS = {
    way.name: way
    for way in (
        Way("seen", "reliability", "a trained item in a trained phrasing", VALUE),
        Way("rephrased", "generality", "the key to the letter in a sentence that was never trained", VALUE),
        Way("paraphrased", "generality", "the key itself in other words", VALUE),
        Way("combined", "portability", "two keys in one prompt", "both values"),
        Way("applied", "portability", "the value is needed for something", "what follows from the value"),
        Way("mention", "locality", "the key is named and something else asked", UNTOUCHED),
        Way("contradicted", "locality", "the prompt states another value", "the prompt's value"),
        Way("neighbour", "locality", "untrained siblings and near misses of keys", UNTOUCHED),
        Way("heldout", "heldout", "an item that was never trained", VALUE),
    )
}
VALUED = tuple(way.name for way in WAYS.values() if way.right == VALUE)  # the whole answer must be the value
PHRASED = tuple(way for way in VALUED if way != "heldout")  # one trained item in several phrasings
GROUPS = ("reliability", "generality", "portability", "locality")
RECALL = GROUPS[:3]  # a right answer needs a trained value
