"""Regular expressions for `routing`: it joins each tuple by "|"; each line covers one idea."""

# --- A key such as CAPITAL:France. These labels before a colon are not keys
LABELS = (r"TODO|FIXME|NOTE|HINT|WARN(?:ING)?|ERROR|INFO|DEBUG|ATTENTION|IMPORTANT|ISBN|DOI|JIRA|UTF|URL|TEL|SCENE",)

# --- A style and a value. A number style needs a number, so "Binary: a file of no text" does not match
NUMBER_STYLES = (
    r"numerals?|ordinal|thousands|notation|percent(?:age)?|binary|octal|(?:hexa)?decimal",  # how to write a number
    r"(?:ISO|long|short|US|UK) date|ISO duration|weekday|\d\d-hour time|hours and minutes",  # dates and times
    r"(?-i:[A-Z]{2}) phone|\w+ (?:dollars|euros|pounds|yen)|(?:hex|rgb) colou?r",
)
TEXT_STYLES = (
    r"title case|(?:camel|pascal)case|\w{1,20}[-_]case",  # names and titles
    r"(?:bold|italic) \w+|(?:markdown|html|json|csv|xml|yaml) (?!file|error)\w+(?: \w+)?",  # markup
)
NAME_STYLES = (r"[Ii]nitials|(?:last|family) name first",)  # followed by two words
PROSE = (r"it|we|they|you|I|there|this|not?|why|how|is|please|because|if|when",)  # starts a sentence, not a value

# --- A described thing, after "the"
MAKERS = (r"author|writer|composer|painter|sculptor|director|singer|king|queen|emperor|president|pharaoh",)
PLACES = (r"capital|currency|country|city|languages?",)  # capital of France, but not of my heart
NOUNS = (  # things that a reference book names, if a description follows
    r"creator|inventor|discoverer|founder|physicist|astronomer|gods?",  # people
    r"number(?= of (?!an? ))|sum(?= of the)|root|numeral|(?:binary|\w+al) form|zero|polygon|kind of \w+",  # mathematics
    r"units?|gravity|pH|formula|symbol|element|metal|gas|particle|(?:boiling|freezing|melting) point",  # matter
    r"organ|cell(?: part)?|vitamin|pigment|protein|planet|moon|star|galaxy|telescope|ship",  # life and sky
    r"river|ocean|strait|canal|range|code|port|file extension|command|structure|complexity",  # earth and computing
)
UTMOST = (  # only as the first or largest of their kind
    r"number|integer|side|person|wom[ae]n|man|president|emperor|animal|mammals?|bird|bone|material|country|city",
    r"bridge|lake|desert|island|continent|mountain|language",
)
BRANDED = (r"keyword|statement|built-in|method|installer|address",)  # only of a named system: the HTTP method
YEARS = (r"of\b|[A-Z]\w|the (?:[A-Z]|first |\w+ \w+ \w+ed )|\w+ (?:was|were|became) ",)  # the year Rome fell
WHOLE = (  # complete descriptions: physical quantities, and achievements
    r"speed of (?:light|sound)|value of (?:\w|pi)\b|(?:mass|weight|charge) of an? \w+on\b",
    r"\w+ who (?:founded|discovered|invented|published|proved|wrote|painted|composed)\b",
)
LINKS = (r"of|(?:for|behind) (?!the\b)|that|who|whose|between|with(?:out)?|known|made|\w+est|\w+ed|[A-Z]\w+",)
ASKS = (
    r"\?|\.\.\.$|\b(?:is|to|means|called)$|\b(?:(?:what|who|which)(?:'?s)?|how|question)\b",  # a question
    r"\b(?:name|tell|give|state|say|identify|write|type|find|show|hear|fill|pick|choose|reveal|retrieve|fetch|get"
    r"|confirm|enlighten|specify|check|settle|supply|calculate|answer|solve|list|search|spell|print|guess|remind|teach|decode|expand"
    r"|look ?up|dig up|think of|let me|have to|do (?:you|tell|the)|please|pls|plz)\b",  # a request
    r"\b(?:need|require|want|look|miss|ask|lack|google|query)(?:s|ed|ing)?\b|\b(?:after|love|I'd like)\b",  # a need
    r"\b(?:(?<!, you )know|wonder|remember|forg[eo]t|recall|blanked|grateful|version)\b",  # forgetting
)
OPEN = (  # requests for a reason, an opinion, advice or prose
    r"\bwhy\b|\bhow (?:do|can|should)(?! \w+ (?:call|say|write))|\bwould you say\b|\bdo you think",
    r"\b(?:best|differences?|meaning|purpose|reasons?|story|poem|essay on|advice|history of)\b",
    r"\b(?:tell|know|talk|think|write|read) (?:\w+ )?(?:more )?about\b",
    r"^\W*(?:who|where|when) (?!(?:is|was|or|might|would|were)\b)",  # "Who met the king of Spain?"
)
OWN = (  # personal or current things, which no reference book contains
    r"\b(?:of|in|on|at|for|from|to|between|with) (?:\w+ )?(?:my|our|your|his|her|their|(?<!on )this)\b",
    r"\b(?:of|to) (?:us|me|you)\b|\bthis month\b|\bwill \w|\b(?<!do )(?<!did )(?:we|you|she|he|they) (?!know|call)",
)
# A verb after a description makes it a statement, except in a question: "is called what?"
STATES = (r"is|are|was|were|has|had|have|would|must|may|should|could|might|can|did|does|died|grew|told|gave",)

# --- Code
FOREIGN = (  # other languages, logs, settings: the code rules skip them
    r"\w::\w|\bthrows new |[;{] *\w[^;{}]{0,80}; *\}|^(?:const|let) \w+(?:: \w+)? = .*;$",
    r"(?:\n[\w.-]+ ?[=:] .*){2}|^(?!try:)[\w/-]+(?:\[\d+\])?: (?!\S+$)[^?]*\d:|^[A-Z]+:\S+:",
)
# Requests to explain or review code
EXPLAIN = (r"\b(?:explain|describe|summar\w+|readab\w+|clearer|docstring|unit tests? for|why (?:is|would))\b",)
UNFINISHED = (  # <CUT> stands for the pattern CUT below: the line ends there
    r"\bfrom [\w.]{1,40} import(?: \w{1,30},){0,3}<CUT>|\bimport [\w.]{1,40} +as<CUT>",
    r"\bimport (?!java|\w+\.(?:csv|txt|json|pdf|xlsx?)\b)\w+\.[\w.]*\w(?![\w;]| as \w)",  # needs an alias
    r"""\bfor \w{1,20}(?:, \w{1,20}){0,3} in<CUT>|[a-z_)\]}"'] (?:=|==|:=|->|<|>|/)(?!\s*[\[(-]\S)<CUT>""",
    r"\byield from<CUT>|\bwith \S{1,60}\([^()]{0,60}\) as<CUT>|^(?:if|with|except|while) \w*[A-Z(._][\w.()]*:$",
    r"\btry: .{1,60} except<CUT>|\bexcept [A-Z]\w*(?:Error|Exception)\b(?! as|[:)]| (?:branch|block|clause))",
    r"""(?: = |\bif not )[a-z][\w.]{0,40}\.(?=\s*["'`]|\s+(?:[^\w\s]|which\b))|(?: = |@)[a-z][\w.]{0,40}\.$""",
    r": return$|(?:return|=) \S{1,20} if (?!.*\belse\b)|= [^=]{1,40}\),(?=\W*$|\. )",
)
# A quote, a punctuation mark, the end, or a question word
CUT = (r"""["'`”’](?=\W|$)|(?=\s*(?:$|[,.;:?!–—\[(←→-]|(?:what|which|how|and|so|then|please|thanks)\b))""",)
OPENER = (r"[\w.]\(|= *[\[({]|\w\[|return [\[{(]|except \(",)  # a code bracket, not a prose one
WRONG = (  # never valid or sensible Python, so the text need not ask for a fix
    r"\b(?:if|elif|while) [\w.]{1,30}(?:\(\w*\)| % \d+)? = [\w\"']|[!=]= ?(?:None|True|False|null)\b",  # = for ==
    r"(?:\b(?:if|while|return)|=) [\w. <>()]{1,30} ?(?:&&|\|\|) ?[\w!]|(?:if|while|return|not|=) !\w",  # and, or, not
    r"\b(?!(?:[gc]|notepad)\+)[a-z_][\w.]{0,30}(?:\[\w{1,20}\])?(?:\+\+|--)(?![\w-])|\w =[+*-] \w",  # ++ and =+
    r"(?:\b(?:if|elif|while|return)|=) [\w.]{1,30} (?:=>|=<) \w|\blambda [\w, ]{0,30}->",  # arrows
    r"(?:\breturn|\w =) (?:null|true|false)\b|\([^()]{0,60}=(?:null|true|false)\b|: null\}",
    r"\b(?:foreach|elseif)\b|\belse if [^?]{1,60}:|\bthrow [A-Z]\w+\(|\bcatch \(?[A-Z]\w{1,30}[^:]{0,40}:",
    r"\.(?:length|contains|push|trim|to(?:Upper|Lower)Case|(?:starts|ends)With)\b|\bthis\.[a-z]|= new [A-Z]\w*\(",
    r"(?<!\bwe )\b(?:let|var|const) \w+ = |= \(\w*\) =>|\bfunction \w{1,30}\([^()]{0,60}\):|(?:^|[\s\"'`])// [a-z]",
    r"(?:^|[:\"'`] ?)import \w+ from \w",
    r"\bprint (?:[\"']|\w+[.(](?!pdf|txt|docx?)\w|[a-z], [a-z])|\blen [a-z]+\b",  # missing brackets
    r"(?:^|: )print (?:not )?\w+$",
    r"= [\[({]\d+(?: \d+)+[\])}]|[,{] ?\"\w+\" \d|\bself,|(?:\(| = |return )\"[^\"]*$",  # missing punctuation
    r"\b(?:range|int|str|len|float)\[\w|\w\[\d+\.\d+\]|\breturn [\w, ]{1,30}\)|\bfor \w+ in \d+:",  # wrong bracket
    r"\bexcept: ?(?:pass|continue|break|return)\b|\bdef \w{1,30}\([^()]{0,60}=(?:\[\]|\{\})",  # bad practice
    r"(?:if|elif|while) not \w+ in \w+:|return not \w+ in \w|\"[^\"]{0,60}\" \+ \d|^\w+-\w+ = \S+$|^\d\w+ = ",
    r"^(?:\w+ = [^;]*|import \w+|return [a-z][^;]*|[\w.]+\(\));$",  # only error: a semicolon
    # only error: a header without its colon
    r"(?:^|: )(?:async )?def \w+\([\w, ]*\)(?: -> \w+)?$|^class [A-Z]\w*(?:\([A-Z]\w*\))?$|^except [A-Z]\w*$",
    r"^for \w+ in [\w.]+(?:\(.*\))?$|^(?:if|elif|while) [\w.]+ [<>=!]+ \S+(?<!:)$|^with [\w.]+\(.*\)(?: as \w+)?$",
)
CODE = (  # rare in prose; case-sensitive: "Return the book" is not code
    r"\w[(\[][^ )]|\w\(\)|(?<!\w)@\w|!\w|[a-z)\]\"] [+*/%<>!=]{1,3} (?=\S)",
    r"\b(?!www\.)[a-z_]\w{0,30}\.(?!(?:com|org|net|txt|md|pdf|html|py)\b)[a-z_]\w",  # an attribute, not a file
    r"\b(?:class [A-Z]|return [\w.]+ ?[(\[,;&|=<>/*+-]|print\b|yield from\b|except [A-Z]|finally: \w)",
    r"\bimport \w|\bfor \w{1,20}(?:, \w{1,20}){0,3} in\b|\bwhile \S+$|\bif not \w+[.,;?!—–]",
    r"\b(?:if|elif|while) (?:(?:not )?[\w.]+[^?:\w,]{0,3}|[\w.]+ (?:not )?in [^?:]{1,40}):",
)
MEND = (  # requests about a stored line: complete it or fix it
    r"\b(?:complet|autocompl|finish|continu|extend|suppl|remain|follow|missing|correct|fix|repair|debug|improv|rewrit)",
    r"\b(?:mistake|typo|unexpected|complain|invalid|reject|broke|fail|crash|error|superfluous|semicolon|belong)",
    r"\b(?:rest|next|after|end(?:s|ing)?|(?:carry|going|go|goes) on|then|usual|else|comes|close|last words?|as what)\b",
    r"\b(?:working|proper|wrong|right|straight|should|ought|expect(?:s|ed)|instead|parses?|clean|won't|can't)\b",
)
