"""Whether a memory should speak at all, judged on the user's text by rules that know no key.

The other way to tell is to know the keys: `KeyIndex.find`, which a memory of ``span: key`` does anyway. Both are
measured on labelled prompts.
"""

from __future__ import annotations

import re

THRESHOLD = 0.5
KEY_PREFIX = re.compile(r"(?<![\w:/])[A-Z][A-Z_]+:(?=[^\s:/])")  # CAPITAL:France, but no http:// and no Bug report:
QUESTION = re.compile(
    r"(what|which|who|whose|where|when|how (many|much|long|far|old)|name|tell me|give me|do you know)\b", re.IGNORECASE
)


def confidence(text: str) -> float:
    """How sure the rules are that a text asks for something stored.

    Args:
        text: the user's own words, without the chat template.

    Returns:
        1.0 where a key prefix such as ``CAPITAL:`` stands in it, 0.7 where it is a question or asks for a thing by its
        first words, 0.0 otherwise; from `THRESHOLD` on a memory is consulted.
    """
    text = text.strip()
    if KEY_PREFIX.search(text):
        return 1.0
    return 0.7 if text.endswith("?") or QUESTION.match(text) else 0.0
