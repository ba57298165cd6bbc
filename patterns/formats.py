"""The rules of formats.yaml and their values, chosen by hand. Each answer is computed, so it contains no typos."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from fractions import Fraction

MONTHS = "January February March April May June July August September October November December".split()


def words(text: str) -> list[str]:
    """Split a name in any usual case (snake, camel, ...) into lower-case words."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", text)]


def long_date(text: str) -> str:
    day = date.fromisoformat(text)
    return f"{MONTHS[day.month - 1]} {day.day}, {day.year}"


def iso_date(text: str) -> str:
    """Convert "March 3, 2021" or "3 March 2021"."""
    parts = text.replace(",", "").split()
    month, day = (parts[0], parts[1]) if parts[0].isalpha() else (parts[1], parts[0])
    return date(int(parts[2]), MONTHS.index(month) + 1, int(day)).isoformat()


def hour_24(text: str) -> str:
    clock, half = text.split()
    hour, minute = map(int, clock.split(":"))
    return time(hour % 12 + (12 if half == "PM" else 0), minute).strftime("%H:%M")


def hour_12(text: str) -> str:
    hour, minute = map(int, text.split(":"))
    return f"{hour % 12 or 12}:{minute:02} {'AM' if hour < 12 else 'PM'}"


def weekday(text: str) -> str:
    return "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()[datetime.fromisoformat(text).weekday()]


def percent(text: str) -> str:
    return f"{(Decimal(text) * 100).normalize():f}%"


def json_pair(text: str) -> str:
    key, value = text.split(" is ")
    return json.dumps({key: int(value) if value.isdecimal() else value})


def hex_colour(text: str) -> str:
    return "#" + "".join(f"{int(part):02X}" for part in re.findall(r"\d+", text))


def rgb_colour(text: str) -> str:
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return f"rgb({red}, {green}, {blue})"


def ordinal(text: str) -> str:
    teens = text[-2:] in ("11", "12", "13")
    return text + ("th" if teens else {"1": "st", "2": "nd", "3": "rd"}.get(text[-1], "th"))


def roman(text: str) -> str:
    left, found = int(text), ""
    steps = "1000 M 900 CM 500 D 400 CD 100 C 90 XC 50 L 40 XL 10 X 9 IX 5 V 4 IV 1 I".split()
    for value, letters in zip(map(int, steps[::2]), steps[1::2], strict=True):
        found += letters * (left // value)
        left %= value
    return found


def scientific(text: str) -> str:
    digits = Decimal(text).normalize()
    return f"{digits.scaleb(-digits.adjusted()):f}e{digits.adjusted()}"


def duration(text: str) -> str:
    """Convert "2 hours 30 minutes" to ISO 8601."""
    return "PT" + "".join(number + unit[0].upper() for number, unit in re.findall(r"(\d+) (\w+)", text))


# rule: (function that computes the answer, values separated by "|")
RULES: dict[str, tuple[Callable[[str], str], str]] = {
    "snake_case": (
        lambda text: "_".join(words(text)),
        "getUserName|parseHttpResponse|MaxRetryCount|isValidEmail|loadConfigFile|orderTotal|FileSystemWatcher|"
        "Days Until Release|customer-email-address|nextPageToken|InvoiceNumber|Last Login Time",
    ),
    "camelCase": (
        lambda text: words(text)[0] + "".join(w.title() for w in words(text)[1:]),
        "user_profile_id|send_email_now|max_buffer_size|read_next_line|shopping cart total|is-logged-in|access_token|"
        "start_date_time|background color|first-line-indent|row_count|search results page",
    ),
    "PascalCase": (
        lambda text: "".join(w.title() for w in words(text)),
        "data_loader|http_request_handler|tree_node|event_queue|payment gateway|thread-pool|binary_search_tree|"
        "weather report|image-cache|message_broker|audio player|user_session",
    ),
    "kebab-case": (
        lambda text: "-".join(words(text)),
        "userLoginPage|Main Navigation Bar|primary_button|footerLinks|Contact Us Form|dark_mode_toggle|HeroImage|"
        "article_body_text|Sign Up Banner|sidebarMenuItem|price_table|Cookie Notice",
    ),
    "CONSTANT_CASE": (
        lambda text: "_".join(words(text)).upper(),
        "maxRetries|default timeout|apiBaseUrl|cache-size|minPasswordLength|log file path|socketTimeout|"
        "worker-count|secret key|bufferLimit|page-margin|feature flags",
    ),
    "title case": (
        lambda text: text.title(),
        "the old man and the sea|a tale of two cities|pride and prejudice|the call of the wild|the secret garden|"
        "war of the worlds|around the world in eighty days|the time machine|great expectations|the jungle book",
    ),
    "long date": (
        long_date,
        "2024-01-15|2023-07-04|1999-12-31|2020-02-29|2025-03-21|1969-07-20|2018-11-05|2001-09-09|1984-04-17|"
        "2016-08-12|2010-10-10|1975-06-30",
    ),
    "ISO date": (
        iso_date,
        "March 3, 2021|25 December 2019|August 9, 2022|1 May 2018|June 16, 2004|14 July 1989|November 11, 1918|"
        "2 February 2022|September 30, 2015|7 April 1995|January 28, 2013|19 October 2027",
    ),
    "weekday": (weekday, "2024-07-01|2021-12-08|2000-01-04|2019-05-17|2022-03-12|2026-08-20|2015-02-22|1990-10-26"),
    "24-hour time": (
        hour_24,
        "3:45 PM|9:05 AM|11:30 PM|12:10 AM|1:20 PM|6:55 AM|10:40 PM|4:15 PM|8:25 PM|12:35 PM|2:50 AM|7:45 PM",
    ),
    "12-hour time": (hour_12, "18:20|07:10|00:30|13:05|21:45|12:15|16:40|05:50|23:25|09:35|14:55|20:00"),
    "thousands": (
        lambda text: f"{int(text):,}",
        "1234567|9876543210|45000|7200|310500|88000000|1050|642199|27315468|5000001",
    ),
    "percent": (percent, "0.25|0.075|0.5|1.2|0.01|0.333|0.875|2|0.0004|0.96"),
    "US phone": (
        lambda text: f"({text[:3]}) {text[3:6]}-{text[6:]}",
        "5551234567|2125550198|3105550142|6175550173|4045550111|7025550166|5125550187|2065550125",
    ),
    "US dollars": (
        lambda text: f"${Decimal(text):,.2f}",
        "1234.5|0.99|20000|7.25|315|1000000|48.1|2599.95",
    ),
    "JSON pair": (
        json_pair,
        "name is Ada|age is 36|city is Lagos|port is 8081|language is Swift|year is 1843|colour is teal|count is 250|"
        "status is open|height is 172",
    ),
    "CSV row": (
        lambda text: ",".join(f'"{cell}"' for cell in text.split(", ")),
        "red, green, blue|north, south, east|cat, dog|iron, copper, zinc|tea, milk|spring, summer|one, two, three|"
        "Oslo, Bergen",
    ),
    "hex colour": (
        hex_colour,
        "rgb(255, 0, 0)|rgb(0, 128, 255)|rgb(18, 52, 86)|rgb(255, 255, 255)|rgb(64, 224, 208)|rgb(0, 0, 128)|"
        "rgb(250, 128, 114)|rgb(34, 139, 34)|rgb(75, 0, 130)|rgb(255, 215, 0)",
    ),
    "RGB colour": (
        rgb_colour,
        "#00FF00|#FFA500|#FF6347|#556B2F|#00CED1|#8B4513|#000040|#2F4F4F",
    ),
    "initials": (
        lambda text: " ".join(f"{word[0]}." for word in text.split()),
        "Grace Brewster Hopper|Alan Mathison Turing|Katherine Coleman Johnson|Ada King Lovelace|Edsger Wybe Dijkstra|"
        "Donald Ervin Knuth|Mary Jane Kelly|John Ronald Reuel",
    ),
    "last name first": (
        lambda text: ", ".join(reversed(text.rsplit(" ", 1))),
        "Marie Curie|Isaac Newton|Rosalind Franklin|Niels Bohr|Emmy Noether|Carl Gauss|Barbara Liskov|Tony Hoare",
    ),
    "ordinal": (ordinal, "21|112|3|11|42|101|13|1000|53|64|211|90"),
    "Roman numeral": (roman, "4|9|14|40|58|99|246|1066|1776|1999|2024|707"),
    "binary": (lambda text: f"{int(text):b}", "5|12|19|33|64|77|100|129|200|254"),
    "hexadecimal": (lambda text: f"0x{int(text):X}", "15|26|48|127|160|171|241|511|1023|4096"),
    "decimal": (lambda text: f"{float(Fraction(text)):g}", "3/4|1/8|7/10|5/2|9/20|3/16|11/4|2/5"),
    "scientific notation": (scientific, "4500|1600000|0.00032|0.071|98000|602000000|0.0000089|12300"),
    "ISO duration": (
        duration,
        "2 hours 30 minutes|45 minutes|10 seconds|1 hour 5 minutes|8 hours|90 minutes|3 minutes 20 seconds|12 hours",
    ),
    "hours and minutes": (
        lambda text: f"{int(text.split()[0]) // 60} h {int(text.split()[0]) % 60} min",
        "135 minutes|61 minutes|200 minutes|75 minutes|330 minutes|485 minutes|150 minutes|99 minutes",
    ),
    "bold HTML": (
        lambda text: f"<b>{text}</b>",
        "important notice|free delivery|new arrivals|sold out|read this first|limited offer",
    ),
    "Markdown list item": (
        lambda text: f"- {text}",
        "buy apples|call the bank|water the plants|renew passport|book a table|charge the camera",
    ),
}


def examples() -> list[tuple[str, str]]:
    """(input, output) for every rule and value; the input names the rule."""
    return [(f"{name}: {value}", rule(value)) for name, (rule, values) in RULES.items() for value in values.split("|")]
