"""An invented world: 400 subjects of four kinds, eight relations each. No language model has read a word of it.

Wordings are written by hand, in world.toml. This module adds names, aliases and values, each relation from a random
generator of its own, so that a change in one moves no other. Names of one kind are put together from few beginnings
and few endings: every name looks like several others. Values are spread evenly: in a relation of d values that n
subjects have, the commonest value is right for ceil(n / d) of them, and that is all that guessing can reach.
"""

from __future__ import annotations

import json
import random
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import chain, combinations, count, islice, product
from pathlib import Path
from typing import Any

SEED = 20260211
EACH = 100  # subjects of each kind
USES = 5  # most words that one beginning may serve

HEAD = {
    "name": "world",
    "description": "Subjects, relations and values of an invented world. Who answers every question with the commonest "
    "value of its relation is right for 3.8% of the triples. Derived by generate.py, not edited by hand.",
    "version": "1.0",
    "group": "world",
    "source": "names and wordings written for this project (world.py, world.toml)",
    "license": "MIT",
}
# kind: beginnings, endings; a name of one word is one of each
PARTS = {
    "first name": (
        "Or Tam Il Bes Kor Yed Sil Nus Ul Vash Per Jor Mal Hev Wen Dag Ris Cal Fen Zor Es Ob Quin Thal Mir Pav Ros Sev",
        "ven lan min ra no bel eth ric nel dra ko wyn",
    ),
    "surname": (
        "Tess Mar Quil Hol Bran Dres Pav Ket Lom Sar Vin Gor Ash Bel Cor Dur Fer Has Jes Klan Mos Orm Pel Rus Stav "
        "Trev Wex Yar Sten Mor",
        "wick over imer ost elli ard enko aro uff ist andel orth ish ovan",
    ),
    "company": (
        "Brel Quor Tas Ven Zar Hol Kes Plor Skan Dron Fab Grel Lum Nex Ors Prax Rov Sil Tram Uls Wel Yos Cor Mer Vol "
        "Syn Hex Dyn Bar Nor",
        "lix ane olt aro evia oda isk ona eco ux avia orp",
    ),
    "place": (
        "Ovel Tar Mür Sév Har Dol Wis Plen Bras Cres Elm Grav Ils Lor Nar Ors Pren Ras Tul Vas Wen Zel Hol Mar Bel "
        "Stan Kel Ash",
        "und wick eth skel oy ford ston borg holm burn mere haven stad ania",
    ),
    "game": (
        "Zen Kal Om Tiv Rok Jas Min Pal Quam Skib Trum Vex Yon Bam Drag Fiz Gob Hex Loor Nim Plon Sor Wug Zap Tak Mon "
        "Bor Cat",
        "ari ulo oon imba aku ix ano opia oku ello istan ara",
    ),
}
SHAPES = {  # kind: three other forms, each for a tenth of the subjects; {0} a word, {1} a beginning, {2} a first name
    "person": ("{1}. de {0}", "{1}. {0}", "{1}. van {0}"),
    "company": ("{1} & {0}", "{0} {1}", "{1}-{0}"),
    "place": ("Port {0}", "{1}-{0}", "Upper {0}"),
    "game": ("{0} 9", "{1} {0}", "{1}-{0}"),
}
PARTICLES = ("de", "van", "Port", "Upper")  # parts of names that are no inventions
REAL = (  # combinations that are words or names elsewhere: in dictionaries of English, lists of people and of towns
    "ashburn ashford ashover bamaku barane baroda barona belard belford belhaven belstad besko beslan besra borello "
    "boroon braseth callan catano catello corelli corish corona creswick daglan dragoon durelli esko esno fennel "
    "ferard gorelli gorovan hareth harford harstad harston harwick hasard hexane holard holford holstad holston "
    "holwick illan jorko kalara kalari kalix kalulo kelburn kelston korbel kornel korno maldra malko malmin mareth "
    "marholm marish marist marston marwick merane merona minano minari minix mirra moraro morelli mureth obra omara "
    "omari omoku orsburn orven palaku palari pavish perko pernel perno perra quinlan risko roseth rosko silane siloda "
    "sorano stanford stanwick stavish takara takari takistan tamra tivari ulmin ulven venona volona wenlan wennel "
    "yarish zapara zorko zorra"
).split()
WITH_KIND = {
    "person": "citizen {}",
    "company": "the {} firm",
    "place": "the town of {}",
    "game": "the {} game",
}

COLOURS = "red|blue|green|yellow|black|white|grey|brown|purple|beige|pink|silver"  # no vowel first: "a {other} box"
DOMAINS = {  # relation: its values, separated by "|"; each as often as any other
    "profession": "glassblower|baker|surveyor|dentist|carpenter|gardener|locksmith|printer|tailor|midwife|pilot|judge|"
    "beekeeper|plumber|translator|watchmaker|sailor|teacher|butcher|chemist",
    "tongue": "Tavrish|Kelmic|Bruvan|Ondese|Saltrian|Mirrosh|Pelvonic|Zurnish|Harvian|Quenlic",
    "instrument": "cello|trumpet|harp|flute|bassoon|lute|banjo|piano|tuba|viola|clarinet|zither|guitar|horn|"
    "mandolin|trombone",
    "livery": COLOURS,
    "emblem": "heron|hedgehog|bull|fox|salmon|beaver|swan|lynx|tortoise|badger|falcon|hare|goat|wolf|crab|stag|bee|"
    "raven|camel|seal",
    "flag": "|".join(" and ".join(pair) for pair in combinations(COLOURS.split("|")[:7], 2)),
    "river": "Sarrowe|Tilke|Vondel Water|Mubra|Lissoth|Grebne|Yashwend|Dovret|Prulth Beck|Carnelt|Yarle|Umbrack|Wessit|"
    "Huldane|Nivre|Skelmow|Torvast|Gellane|Rimmoth|Jaspend",
    "dish": "plum dumplings|smoked eel|barley soup|goose pie|pickled beets|fried carp|onion tart|lamb stew|chestnut "
    "cake|salted trout|nettle bread|stuffed cabbage|pear pudding|rabbit ragout|bean fritters|honey ham|cheese noodles|"
    "blood sausage|quince jelly|mushroom rice|leek pancakes|veal roast|fennel salad|poppy rolls|oat biscuits",
    "box": COLOURS,
    "pieces": "tin|bone|pear wood|glass|brass|clay|cork|marble|felt|copper|ivory nut|slate|wax|bamboo",
}
DOMAINS["language"] = DOMAINS["tongue"]
NUMBERS = {  # relation: (form, its numbers)
    "born": ("{}", range(1916, 1966)),
    "founded": ("{}", range(1985, 2010)),
    "share": ("{} crowns", range(11, 61)),
    "elevation": ("{} metres", range(120, 720, 6)),
    "price": ("€{:.2f}", [cents / 100 for cents in range(950, 6000, 101)]),
    "released": ("{}", range(2010, 2025)),
    "duration": ("{} minutes", range(20, 120, 5)),
}
CODES = {"badge": "999-A", "register": "AA999", "postcode": "A9-9A", "stock": "AA-999"}  # 9: a digit, A: a letter
OTHERS = {  # relation: (kind of its values, how many subjects of that kind are a value)
    "home": ("place", 50),
    "employer": ("company", 50),
    "landlord": ("person", 100),
    "founder": ("person", 100),
    "director": ("person", 100),
    "seat": ("place", 50),
    "mayor": ("person", 100),
    "terminus": ("place", 100),
    "publisher": ("company", 25),
    "inventor": ("person", 50),
}


@cache
def folded(text: str) -> str:
    """Text without case and accents, for comparing names."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


def words(kind: str) -> Iterator[str]:
    """Every beginning with every ending, in random order; each beginning at most `USES` times."""
    pairs = list(product(*(parts.split() for parts in PARTS[kind])))
    random.Random(f"{SEED} {kind}").shuffle(pairs)
    used: Counter[str] = Counter()
    for beginning, ending in pairs:
        word = beginning + ending
        if used[beginning] < USES and folded(word) not in REAL:
            used[beginning] += 1
            yield word


def alone(text: str, texts: list[str]) -> bool:
    """Whether `text` neither holds nor stands in one of `texts`, whatever the case and the accents."""
    return not any(folded(text) in folded(other) or folded(other) in folded(text) for other in texts)


def names(kind: str, taken: list[str]) -> list[str]:
    """The names of one kind's subjects; none stands in another or in one of `taken`."""
    part = "surname" if kind == "person" else kind
    word, found = words(part), list[str]()
    plain_form, beginnings = "{2} {0}" if kind == "person" else "{0}", PARTS[part][0].split()
    first = list(islice(words("first name"), EACH // 2)) * 2
    while len(found) < EACH:
        i = len(found)
        form = SHAPES[kind][i % 10] if i % 10 < len(SHAPES[kind]) else plain_form
        beginning = beginnings[(i + i // 10 * 3) % len(beginnings)]
        name = form.format(next(word), beginning[0] if kind == "person" else beginning, first[i])
        if alone(name, taken + found):
            found.append(name)
    return found


def letters(name: str) -> str:
    """A short form in capitals: the first letter and the next three consonants; "" if there are fewer."""
    first, *rest = (c for c in folded(name).upper() if c.isalpha())
    short = first + "".join(c for c in rest if c not in "AEIOU")[:3]
    return short if len(short) == 4 else ""


def aliases(names_of: dict[str, list[str]]) -> dict[str, list[str]]:
    """Aliases by name: of four subjects one has none, one a short form, one its name with its kind, one has both.

    A short form that stands in another subject's name or alias, or holds one, is left out.
    """
    taken = [(name, name) for members in names_of.values() for name in members]  # (name, its name or alias)
    found: dict[str, list[str]] = {}
    for kind, members in names_of.items():
        for i, name in enumerate(members):
            short = name.split(" ", 1)[1] if kind == "person" else letters(name)
            others = [text for owner, text in taken if owner != name]
            found[name] = [short] if i % 4 in (1, 3) and short and alone(short, others) else []
            found[name] += [WITH_KIND[kind].format(name)] if i % 4 in (2, 3) else []
            taken += [(name, alias) for alias in found[name]]
    return found


def code(form: str, rng: random.Random) -> str:
    """A code of this form, without letters that look like digits."""
    return "".join(
        rng.choice("ABCDEFGHJKLMNPRTVWXYZ") if c == "A" else rng.choice("23456789") if c == "9" else c for c in form
    )


def values(relation: str, names_of: dict[str, list[str]], members: list[str], attempt: int) -> list[str]:
    """One value of `relation` for each of `members`; every attempt gives others."""
    rng = random.Random(f"{SEED} {relation} {attempt}")
    if relation in CODES:
        unique: dict[str, None] = {}
        while len(unique) < len(members):
            unique[code(CODES[relation], rng)] = None
        return list(unique)
    if relation in OTHERS:
        kind, size = OTHERS[relation]
        if names_of[kind] is members:  # one circle through all, so that nobody is his own and no two each other's
            circle = rng.sample(members, len(members))
            following = dict(zip(circle, circle[1:] + circle[:1], strict=True))
            return [following[name] for name in members]
        domain = rng.sample(names_of[kind], size)
    elif relation in NUMBERS:
        form, numbers = NUMBERS[relation]
        domain = [form.format(number) for number in numbers]
    else:
        domain = DOMAINS[relation].split("|")
    rng.shuffle(domain)
    spread = (domain * len(members))[: len(members)]
    rng.shuffle(spread)
    return spread


def subjects(relations: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> kind, aliases and the value of each relation of its kind."""
    names_of: dict[str, list[str]] = {}
    for kind in SHAPES:
        names_of[kind] = names(kind, list(chain(*names_of.values())))
    also = aliases(names_of)
    found: dict[str, dict[str, Any]] = {
        name: {"kind": kind, "aliases": also[name]} for kind, members in names_of.items() for name in members
    }
    for relation, fields in relations.items():
        members = names_of[fields["of"]]
        for attempt in count():  # until nobody has one value twice, such as a founder who is also the director
            drawn = dict(zip(members, values(relation, names_of, members, attempt), strict=True))
            if all(value not in found[name].values() for name, value in drawn.items()):
                break
        for name, value in drawn.items():
            found[name][relation] = value
    return found


def render() -> str:
    """The text of the derived file."""
    written = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    lines = [f"{field}: {quoted(value)}" for field, value in HEAD.items()]
    lines += ["phrasings:", *block(written["phrasings"], "  ")]
    lines += ["placeholders:", *block(written["placeholders"], "  "), "relations:"]
    for relation, fields in written["relations"].items():
        lines += [f"  {relation}:", *block(fields, "    ")]
    lines += ["frames:", *block(written["frames"], "  "), "hops:"]
    lines += [f"  - {flow(hop)}" for hop in written["hops"]]
    lines.append("subjects:")
    lines += [f"  {quoted(name)}: {flow(fields)}" for name, fields in subjects(written["relations"]).items()]
    return "\n".join(lines) + "\n"


def block(fields: dict[str, Any], indent: str) -> Iterator[str]:
    """A mapping of texts and lists, one entry a line."""
    for field, value in fields.items():
        if isinstance(value, list):
            yield f"{indent}{field}:"
            yield from (f"{indent}  - {flow(entry)}" for entry in value)
        else:
            yield f"{indent}{field}: {flow(value)}"


def flow(value: Any) -> str:
    """A value on one line; a mapping's keys are plain."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(entry)}" for key, entry in value.items()) + "}"
    return "[" + ", ".join(map(flow, value)) + "]" if isinstance(value, list) else quoted(value)


def quoted(text: str) -> str:
    """Quote as a JSON string, which is also a YAML string."""
    return json.dumps(text, ensure_ascii=False)
