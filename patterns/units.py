"""Unit conversions: factors from NIST Special Publication 811, appendix B, and IEC 80000-13; answers are computed."""

from __future__ import annotations

from decimal import Decimal

# "A B factor": one A is `factor` B; "_" stands for a space.
FACTORS = """
km m 1000|mile km 1.609344|inch cm 2.54|foot cm 30.48|yard m 0.9144|nautical_mile m 1852|pound kg 0.45359237|
ounce g 28.349523125|stone kg 6.35029318|tonne kg 1000|litre ml 1000|US_gallon litre 3.785411784|UK_pint ml 568.26125|
hour s 3600|day s 86400|week h 168|kWh MJ 3.6|calorie J 4.184|hp W 745.69987158|bar Pa 100000|atm Pa 101325|
knot km/h 1.852|hectare m2 10000|acre m2 4046.8564224|KiB B 1024|MiB KiB 1024|radian degree 57.295779513082|
light-year km 9460730472580.8|m cm 100|cm mm 10|inch mm 25.4|foot inch 12|yard foot 3|mile yard 1760|fathom m 1.8288|
furlong m 201.168|angstrom nm 0.1|astronomical_unit km 149597870.7|parsec light-year 3.261563777|kg g 1000|g mg 1000|
carat mg 200|pound ounce 16|stone pound 14|US_ton kg 907.18474|long_ton kg 1016.0469088|grain mg 64.79891|
troy_ounce g 31.1034768|UK_gallon litre 4.54609|US_pint ml 473.176473|US_cup ml 236.5882365|
US_fluid_ounce ml 29.5735295625|tablespoon teaspoon 3|US_quart ml 946.352946|oil_barrel litre 158.987294928|
litre dl 10|m3 litre 1000|minute s 60|day h 24|week day 7|fortnight day 14|hour min 60|decade year 10|
century year 100|millennium year 1000|kWh kJ 3600|kcal kJ 4.184|BTU J 1055.05585262|electronvolt J 1.602176634e-19|
therm MJ 105.505585262|kW W 1000|metric_hp W 735.49875|psi kPa 6.894757293|mmHg Pa 133.322387415|kPa Pa 1000|
hPa Pa 100|inHg kPa 3.386389|pound-force N 4.4482216152605|kgf N 9.80665|mph km/h 1.609344|m/s km/h 3.6|
ft/s m/s 0.3048|km2 hectare 100|square_mile km2 2.589988110336|square_foot m2 0.09290304|hectare acre 2.471053815|
are m2 100|GiB MiB 1024|TiB GiB 1024|kB B 1000|MB kB 1000|GB MB 1000|byte bit 8|nibble bit 4|degree arcminute 60|
arcminute arcsecond 60|turn degree 360|right_angle degree 90|dozen items 12|gross items 144|score items 20|
kHz Hz 1000|GHz MHz 1000|poise Pa·s 0.1|gauss tesla 0.0001|curie GBq 37|rad Gy 0.01|rem Sv 0.01
"""
AMOUNTS = """
5 km m|3 hour min|2 week day|4 kg g|10 inch cm|6 foot inch|7 GiB MiB|2 day h|9 byte bit|5 dozen items|12 litre ml|
8 m cm|15 minute s|3 mile km|20 knot km/h|100 mph km/h|50 km2 hectare|4 yard foot|30 cm mm|6 kcal kJ|8 pound kg|
2 tonne kg|3 US_gallon litre|25 bar Pa|11 stone kg|40 hour s|13 acre m2|16 ounce g
"""
PLURALS = {"foot": "feet", "inch": "inches"} | {
    unit: unit + "s"
    for unit in "hour|week|day|byte|litre|minute|mile|knot|yard|pound|tonne|acre|ounce|US gallon".split("|")
}


def number(value: Decimal) -> str:
    """Up to six significant digits, else rounded to four; very small and large rounded values get an exponent."""
    value = value.normalize()
    exact = len(value.as_tuple().digits) <= 6
    if not exact:
        value = Decimal(f"{value:.3e}")
    if value < Decimal("1e-4") or (not exact and value >= 1_000_000):
        digits, power = f"{value:e}".split("e")
        return f"{digits}e{int(power)}"
    return f"{value:f}"


def conversions() -> list[tuple[str, str]]:
    factors = {(a, b): Decimal(factor) for a, b, factor in (row.split() for row in _rows(FACTORS))}
    asked = [("1", a, b) for a, b in factors] + [(n, a, b) for n, a, b in (row.split() for row in _rows(AMOUNTS))]
    return [
        (f"CONVERT:{n} {a} to {b}".replace("_", " "), f"{number(Decimal(n) * factors[a, b])} {b}") for n, a, b in asked
    ]


def plain_words(key: str) -> str:
    """Say "CONVERT:6 foot to inch" as a person would: "6 feet in inch"; the answer's unit keeps its spelling."""
    left, target = key.removeprefix("CONVERT:").split(" to ")
    amount, unit = left.split(" ", 1)
    return f"{amount} {unit if amount == '1' else PLURALS.get(unit, unit)} in {target}"


def _rows(table: str) -> list[str]:
    return table.replace("\n", "").split("|")
