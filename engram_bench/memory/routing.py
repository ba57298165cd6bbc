"""Whether a memory should speak at all, judged on the user's text by rules that know no key.

The other way to tell is to know the keys: `KeyIndex.find`, which a memory of ``span: key`` does anyway. Both are
measured on labelled prompts. The rules were written on ``routing_development_*.yaml``, not on those that judge them.
"""

from __future__ import annotations

import re

THRESHOLD = 0.5
# CAPITAL:France, but no http://, no Bug report:, no ERROR:root:text and none of the labels programmers write
KEY_PREFIX = re.compile(r"(?<![\w:/])(?!(?:TODO|FIXME|NOTE|WARNING|ERROR|INFO):)[A-Z][A-Z_]{2,}:(?=[^\s:/])(?!\S*:\S)")
# A line of code that breaks off; an open bracket is the other sign of it
UNFINISHED = re.compile(r"(?<=[\w)\]] )(=|==|->)$|\b(from [\w.]+ import|for \w+(, \w+)* in|with .*\) as|: return)$")
CODE = re.compile(  # what prose has little of; case counts: "Return the book" is no code
    r"\w[(\[]| (?!([-/&*]|--|<-) )[-+*/%<>=!|&]{1,3} | =$|\|\||&&|->|=>|\+\+|\w--|\b[a-z_]\w*\.[a-z_]|\w\. |@\w|//|!\w"
    r"|\b(def|elif|elseif|foreach|lambda|return|raise|print|yield|class [A-Z]\w*|(try|else|except):|except [A-Z]\w*"
    r"|import [\w.]+|[\w.]+ import|for \w+(, \w+)* in)\b|\b(if|while|with|catch) [^?]*:|\bwhile \S+$"
)
MEND = re.compile(  # what is asked about code that is stored: its end, or the same put right
    r"\b(complet|autocomplet|finish|continu|extend|predict|suppl|suggest|remain|follow|behind|missing)"
    r"|\b(fill|rest|next|after|ends?|ending|(goes?|carry) on|then|usual|so far|else|begins?|beginning|works?|working)\b"
    r"|\b(fix|correct|repair|mend|debug|improv|rewrite|clean up|edit|proper|wrong|right|bug|broke|fail|crash|mistake"
    r"|typo|problem|better|instead|should|complain|warn|reject|unexpected|throws|raises|can't|cannot|no such)"
    r"|error\b(?!:\S)|valid|(not|n't) (run|work)",
    re.IGNORECASE,
)
DESCRIPTION = re.compile(  # of one thing that goes unnamed: the author of ..., the largest ..., the year ...
    r"\bthe (?!(best|rest|test|next|end|guest|nearest|(first|last) time)\b)(([\w'+#.-]+ ){0,2}?[\w'+#.-]*[^\Ws] "
    r"(of|in|for|from|that|who|whose|behind|between|with)|first|last|only|year|most|(\w+ )?\w+est|[A-Z]\w+ [a-z]\w+)\b"
)
ASKS = re.compile(
    r"\?$|(?-i:^the)\b|[:,] the\b|\b(what|who|which|name|tell|give|state|say|identify|write|need|know|wonder|ask"
    r"|remember|remind|forgot|recall|look up|find|show|hear|fill|question|calculate|answer|please)\b",
    re.IGNORECASE,
)
EXPLAIN = re.compile(r"\b(explain|describe|summar|review|translate|why is)", re.IGNORECASE)
OPEN = re.compile(  # asks for opinion, advice, a reason or prose, which no stored value answers, or by another verb
    r"\b(why|how (do|can|should)|think|like|best|(tell|know) (me |us )?(more )?about|what (are|can|do|did|does|should)"
    r"|(difference|meaning|purpose|plan|history|reason|output|way|recipe|story|essay|poem|sentence|example)s?"
    r"|(of|in|to|with) (my|our|your|this))\b|^(who|where|when) (?!(is|was|or|might|would)\b)",
    re.IGNORECASE,
)
# "style: value" where something is asked: the style or value looks technical, or a verb or a stop stands before it
LABEL = r"[\w-]{2,}( [\w-]+){0,2}: "
TECHNICAL = r"\b(\w+[-_]\w+|\w*[a-z][A-Z]\w*(?<!Error)|[A-Z]{2,} [a-z]+|[a-z]+ [A-Z]{2,}): \S"
REQUEST = (
    r"\b(?i:convert|rewrite|(re)?format|turn|change|transform|express|write|output|print|produce|return|give|get|make"
    r"|show|take|apply|rename|compute|render|put|say|spell|want|need|do|is|answer|result|only|perform|evaluate|follow"
    r"|please|what|how|for|about|in|with)\b"
)
FORMAT = re.compile(
    rf"(?!{LABEL}\S+$).*{TECHNICAL}|(?=.*({REQUEST}|\?)).*([a-z]: ([#\d]|\w+[_(]\w)"
    rf"|({REQUEST}( me)?|[.:?]) (?!(a|the|this|my|your|you|it|that|so|note)\b){LABEL}\S)",
    re.DOTALL,
)


def confidence(text: str) -> float:
    """How sure the rules are that a text asks for something stored.

    Args:
        text: the user's own words, without the chat template.

    Returns:
        1.0 where a key prefix such as ``CAPITAL:`` stands in it; 0.7 where it asks for a described thing, for code to
        be completed or put right or for a value in a named style; 0.0 otherwise. From `THRESHOLD` on a memory is
        consulted.
    """
    text = text.strip()
    if KEY_PREFIX.search(text):
        return 1.0
    if EXPLAIN.search(text):
        return 0.0
    breaks_off = UNFINISHED.search(text) or any(text.count(a) > text.count(b) for a, b in ("()", "[]", "{}"))
    mended = MEND.search(text) and CODE.search(text)
    described = DESCRIPTION.search(text) and ASKS.search(text) and not OPEN.search(text)
    return 0.7 if breaks_off or mended or described or FORMAT.match(text) else 0.0
