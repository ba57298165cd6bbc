"""Tables behind the derived lookup families.

Python versions differ in four HTTP reason phrases, which RFC 9110 renamed. They are fixed here, so that every version
derives the same bytes.
"""

from __future__ import annotations

import http
import unicodedata

ELEMENTS = (
    "H Hydrogen He Helium Li Lithium Be Beryllium B Boron C Carbon N Nitrogen O Oxygen F Fluorine Ne Neon Na Sodium "
    "Mg Magnesium Al Aluminium Si Silicon P Phosphorus S Sulfur Cl Chlorine Ar Argon K Potassium Ca Calcium "
    "Sc Scandium Ti Titanium V Vanadium Cr Chromium Mn Manganese Fe Iron Co Cobalt Ni Nickel Cu Copper Zn Zinc "
    "Ga Gallium Ge Germanium As Arsenic Se Selenium Br Bromine Kr Krypton Rb Rubidium Sr Strontium Y Yttrium "
    "Zr Zirconium Nb Niobium Mo Molybdenum Tc Technetium Ru Ruthenium Rh Rhodium Pd Palladium Ag Silver Cd Cadmium "
    "In Indium Sn Tin Sb Antimony Te Tellurium I Iodine Xe Xenon Cs Caesium Ba Barium La Lanthanum Ce Cerium "
    "Pr Praseodymium Nd Neodymium Pm Promethium Sm Samarium Eu Europium Gd Gadolinium Tb Terbium Dy Dysprosium "
    "Ho Holmium Er Erbium Tm Thulium Yb Ytterbium Lu Lutetium Hf Hafnium Ta Tantalum W Tungsten Re Rhenium Os Osmium "
    "Ir Iridium Pt Platinum Au Gold Hg Mercury Tl Thallium Pb Lead Bi Bismuth Po Polonium At Astatine Rn Radon "
    "Fr Francium Ra Radium Ac Actinium Th Thorium Pa Protactinium U Uranium Np Neptunium Pu Plutonium Am Americium "
    "Cm Curium Bk Berkelium Cf Californium Es Einsteinium Fm Fermium Md Mendelevium No Nobelium Lr Lawrencium "
    "Rf Rutherfordium Db Dubnium Sg Seaborgium Bh Bohrium Hs Hassium Mt Meitnerium Ds Darmstadtium Rg Roentgenium "
    "Cn Copernicium Nh Nihonium Fl Flerovium Mc Moscovium Lv Livermorium Ts Tennessine Og Oganesson"
).split()

HTTP_CODES = (
    *range(100, 104), *range(200, 209), 226, *range(300, 306), 307, 308, *range(400, 419), *range(421, 427), 428, 429,
    431, 451, *range(500, 509), 510, 511,
)  # fmt: skip
HTTP_RENAMED = {  # renamed by RFC 9110, and in Python since 3.13
    413: "Content Too Large", 414: "URI Too Long", 416: "Range Not Satisfiable", 422: "Unprocessable Content",
}  # fmt: skip

SI_PREFIXES = (
    "quecto -30 ronto -27 yocto -24 zepto -21 atto -18 femto -15 pico -12 nano -9 micro -6 milli -3 centi -2 deci -1 "
    "deca 1 hecto 2 kilo 3 mega 6 giga 9 tera 12 peta 15 exa 18 zetta 21 yotta 24 ronna 27 quetta 30"
).split()
BINARY_PREFIXES = "kibi mebi gibi tebi pebi exbi zebi yobi".split()

# Characters with short names. Unicode never changes a name.
CHARACTERS = (
    "!#$%&*+,-./:;<=>?@_|~¡¢£¥§©¬®¯°±²³´µ¶·¹º¼½¾¿×÷ΑΒΓΔΘΛΞΠΣΦΨΩαβγδεζηθικλμνξπρστφχψω–—†‡•…‰′″€™℮←↑→↓↔⇒⇔∀∂∃∅∆∇∈∏∑−√∞∠∧"
    "∨∩∪∫∴≈≠≡≤≥⊂⊃⊕⊗⌘⌛■□▲△▶▼◆○●★☆☎☕☠☢☮☯☺♀♂♔♕♖♗♘♙♠♣♥♦♪♯⚓⚠⚡✂✈✓✗❄❤➔あいうえおアイウエオ🌍🍎🎵🐍🐧👍💡🔑😀🚀🦀"
)


def element_names() -> list[tuple[str, str]]:
    return [(f"ELEMENT:{s}", name) for s, name in zip(ELEMENTS[::2], ELEMENTS[1::2], strict=True)]


def element_numbers() -> list[tuple[str, str]]:
    return [(f"ATOMIC_NUMBER:{name}", str(number)) for number, name in enumerate(ELEMENTS[1::2], 1)]


def http_statuses() -> list[tuple[str, str]]:
    return [(f"HTTP:{code}", HTTP_RENAMED.get(code, http.HTTPStatus(code).phrase)) for code in HTTP_CODES]


def prefixes() -> list[tuple[str, str]]:
    decimal = [(f"PREFIX:{p}", f"10^{power}") for p, power in zip(SI_PREFIXES[::2], SI_PREFIXES[1::2], strict=True)]
    return decimal + [(f"PREFIX:{p}", f"2^{10 * (i + 1)}") for i, p in enumerate(BINARY_PREFIXES)]


def unicode_names() -> list[tuple[str, str]]:
    return [(f"UNICODE:U+{ord(c):04X}", unicodedata.name(c)) for c in CHARACTERS]
