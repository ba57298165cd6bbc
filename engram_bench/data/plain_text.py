"""Reads a user's text as plain text: the special tokens that it names are split, those of a chat template are not."""

from __future__ import annotations

import re
import secrets
from typing import Any

from engram_bench.errors import UsageError


class SplitTokenizer:
    """A copy of a tokenizer that splits special tokens named in a text, and reads those of the template.

    The copy knows each special token by a second name, which no text contains: it has a random part. `sealed` puts
    these names into the template's text. Apart from special tokens, all texts get the same ids as before.

    Args:
        tokenizer: a fast transformers tokenizer.
        template: rendered text; the added tokens in it, other than white space, count as special.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        from tokenizers import AddedToken, Tokenizer  # a part of transformers, which a core installation lacks

        self._copy: Any = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._copy.no_truncation()
        self._copy.no_padding()
        added = self._copy.get_added_tokens_decoder()
        special = {i: t for i, t in added.items() if t.special or (t.content.strip() and t.content in template)}
        self._copy.add_special_tokens([token.content for token in special.values()])
        self._copy.encode_special_tokens = True  # splits them
        run = secrets.token_hex(8)
        names = {i: f"<{run}-{i}>" for i in special}
        alike = ("single_word", "lstrip", "rstrip", "normalized")
        for i, token in special.items():
            options = {name: getattr(token, name) for name in alike}
            self._copy.add_tokens([AddedToken(names[i], special=False, **options)])
        self._unknown_id = tokenizer.unk_token_id  # it stands for characters outside the vocabulary
        self._sealed_id = {i: self._copy.token_to_id(name) for i, name in names.items()}
        self._id = {sealed: i for i, sealed in self._sealed_id.items()}
        self._names = {token.content: names[i] for i, token in special.items()}
        longest_first = sorted(self._names, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def sealed(self, text: str) -> str:
        """A text of the template with its special tokens by their second names."""
        return self._special.sub(lambda found: self._names[found[0]], text)

    def special_ids(self, sealed: str) -> set[int]:
        """The special tokens of a sealed text."""
        return {self._id[i] for i in self._copy.encode(sealed, add_special_tokens=False).ids if i in self._id}

    def encode(self, sealed: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and the range [start, end) of each token's characters.

        Raises:
            UsageError: the tokenizer's own vocabulary has a special token that the text names.
        """
        encoded = self._copy.encode(sealed, add_special_tokens=False)
        for i in encoded.ids:
            if i in self._sealed_id and i != self._unknown_id:
                name = self._copy.id_to_token(i)
                raise UsageError(f"the model's tokenizer cannot read {name!r} as plain text; remove it from the text")
        return [self._id.get(i, i) for i in encoded.ids], encoded.offsets
