"""The rules of error_fixes.yaml: correct lines, chosen by hand, and the one mistake that each rule makes in them."""

from __future__ import annotations

import re
from collections.abc import Callable

OTHER_NAMES = {
    "upper": "toUpperCase", "lower": "toLowerCase", "append": "push", "strip": "trim",
    "startswith": "startsWith", "endswith": "endsWith",
}  # fmt: skip


def _other_name(right: str) -> str:
    return re.sub(r"\.(\w+)\(", lambda found: f".{OTHER_NAMES[found[1]]}(", right)


def _misspelled(right: str) -> str:
    """The keyword with the two letters in its middle swapped."""
    word = re.match(r"\w+", right)
    assert word
    at = len(word[0]) // 2
    return right[:at] + right[at + 1] + right[at] + right[at + 2 :]


# mistake: (function that turns a correct line into a wrong one, correct lines separated by "|")
RULES: dict[str, tuple[Callable[[str], str], str]] = {
    "assignment for comparison": (
        lambda right: right.replace("==", "=", 1),
        'if x == 5:|if name == "admin":|while count == 0:|if total == limit:|if mode == "debug":|if len(rows) == 0:|'
        'elif answer == "yes":|if n % 2 == 0:|while state == "busy":|if user.role == "owner":',
    ),
    "colon missing": (
        lambda right: right.removesuffix(":"),
        'for n in range(10):|def greet(name):|class Point:|with open("f.txt") as f:|while backlog:|if age >= 18:|'
        "for word in words:|def area(width, height):|class Circle(Shape):|elif score > 50:|with lock:|"
        "for row in table.rows:|if not found:|async def fetch(url):|def main() -> None:|while tries < 3:",
    ),
    "quote left open": (
        lambda right: re.sub(r'"(?=[^"]*$)', "", right),
        'print("hello")|title = "Report"|raise LookupError("id")|names.append("Zoe")|log.info("started")|'
        'path = Path("data")|return "ok"|city = input("City? ")',
    ),
    "print without brackets": (
        lambda right: re.sub(r"print\((.*)\)", r"print \1", right),
        "print('done')|print(\"ready\")|print(total)|print(len(names))|print(x, y)|print(item.price)|print('a', 'b')|"
        "print(not ok)",
    ),
    "bracket left open": (
        lambda right: right[:-1],
        "list = [1, 2, 3]|bill = sum(prices)|data = {'id': 7}|point = (3, 4)|names = sorted(set(names))|"
        "matrix[0][1]|print(max(scores))|pairs = list(zip(xs, ys))|size = len(text.split())",
    ),
    "C-like and": (
        lambda right: right.replace(" and ", " && "),
        "if a and b:|while x > 0 and y > 0:|return ready and valid|if user and user.active:|ok = left and right",
    ),
    "C-like or": (
        lambda right: right.replace(" or ", " || "),
        "if a or b:|while empty or waiting:|return name or default|if x < 0 or x > 9:|found = first or second",
    ),
    "C-like not": (
        lambda right: right.replace("not ", "!"),
        "if not done:|while not finished:|return not errors|if not is_valid(form):|hidden = not visible",
    ),
    "increment": (lambda right: right.replace(" += 1", "++"), "i += 1|total_lines += 1|hits[key] += 1|self.age += 1"),
    "decrement": (lambda right: right.replace(" -= 1", "--"), "count -= 1|lives -= 1|stock[name] -= 1|self.left -= 1"),
    "sign before operator": (
        lambda right: re.sub(r"([-+*])=", r"=\1", right),
        "x += 1|balance -= fee|score += bonus|factor *= 2|width -= margin",
    ),
    "comparison turned round": (
        lambda right: right.replace(">=", "=>").replace("<=", "=<"),
        "if price >= 100:|while low <= high:|return a <= b|if level >= top:|ok = size <= 64|if year >= 2000:",
    ),
    "else if": (
        lambda right: right.replace("elif", "else if"),
        'elif x > 3:|elif key in cache:|elif grade == "B":|elif line.strip():',
    ),
    "elseif": (lambda right: right.replace("elif", "elseif"), "elif done:|elif n < 0:|elif other is None:"),
    "JavaScript length": (
        lambda right: re.sub(r"len\((\w+)\)", r"\1.length", right),
        "len(items)|n = len(users)|if len(password) < 8:|return len(nodes)|last = rows[len(rows) - 1]",
    ),
    "Java length": (
        lambda right: re.sub(r"len\((\w+)\)", r"\1.length()", right),
        "len(text)|end = len(buffer)|while len(stack) > 1:|half = len(message) // 2",
    ),
    "len without brackets": (
        lambda right: re.sub(r"len\((\w+)\)", r"len \1", right),
        "len(items)|n = len(words)|print(len(keys))",
    ),
    "JavaScript name of a method": (
        _other_name,
        "name.upper()|email.lower()|items.append(4)|line.strip()|url.startswith('/')|file.endswith('.csv')|"
        "cart.append(book)|tag.upper()|answer.lower()|word.strip()|code.startswith('X')|queue.append(task)",
    ),
    "contains": (
        lambda right: re.sub(r"(\"?[\w@]+\"?) in (\w+)", r"\2.contains(\1)", right),
        '"a" in text|if "@" in email:|if key in settings:|found = name in guests|return word in title',
    ),
    "null": (
        lambda right: right.replace("None", "null"),
        "result = None|return None|parent = None|def find(key, default=None):|cache = {'root': None}",
    ),
    "true in lower case": (
        lambda right: right.replace("True", "true"),
        "value = True|return True|debug = True|run(fast=True)",
    ),
    "false in lower case": (
        lambda right: right.replace("False", "false"),
        "flag = False|return False|visible = False|sort(stable=False)",
    ),
    "None compared by equality": (
        lambda right: right.replace("is not None", "!= None").replace("is None", "== None"),
        "if x is not None:|if node is None:|return value is None|while head is not None:|if match is None:|"
        "ready = job is not None",
    ),
    "true compared": (
        lambda right: right.replace(":", " == True:"),
        "if paid:|while running:|if user.is_active:|elif enabled:|if is_prime(n):",
    ),
    "false compared": (
        lambda right: re.sub(r"not ([\w.]+)", r"\1 == False", right),
        "if not closed:|while not stopped:|if not user.banned:|elif not loaded:",
    ),
    "not before the operand": (
        lambda right: re.sub(r"(\w+) not in", r"not \1 in", right),
        "if x not in items:|if name not in users:|while word not in seen:|elif key not in cache:|"
        "return c not in vowels",
    ),
    "import as": (
        lambda right: re.sub(r"import (\w+) as (\w+)", r"import \1 from \2", right),
        "import tensorflow as tf|import seaborn as sns|import networkx as nx|import polars as pl",
    ),
    "comma too many": (
        lambda right: right + ",",
        "from math import sqrt|from os import path|from glob import glob|from json import dumps",
    ),
    "dash in a name": (
        lambda right: re.sub(r"(\w+)_(\w+) =", r"\1-\2 =", right),
        "my_var = 3|first_name = 'Ann'|max_speed = 120|page_count = 0|user_ids = []",
    ),
    "mutable default": (
        lambda right: right.replace("=None", "=[]"),
        "def f(x=None):|def add(item, basket=None):|def visit(node, seen=None):|def collect(*, rows=None):",
    ),
    "text plus number": (
        lambda right: re.sub(r"str\((\w+)\)", r"\1", right),
        '"age: " + str(3)|"room " + str(12)|"version " + str(2)|"total: " + str(99)',
    ),
    "index that is no whole number": (
        lambda right: re.sub(r"\[(\d+)\]", r"[\1.0]", right),
        "numbers[1]|rows[0]|first = names[0]|print(scores[2])|letters[5]",
    ),
    "bare except": (
        lambda right: right.replace("except Exception", "except"),
        "except Exception: pass|except Exception: continue|except Exception: return None|except Exception: break",
    ),
    "JavaScript arrow": (
        lambda right: re.sub(r"lambda (\w+): (.+)", r"(\1) => \2", right),
        "double = lambda n: n * 2|square = lambda k: k ** 2|key = lambda p: p.age|inc = lambda v: v + 1",
    ),
    "arrow in a lambda": (
        lambda right: right.replace(":", " ->"),
        "lambda x: x + 1|lambda row: row[0]|lambda s: s.lower()|lambda a, b: a * b",
    ),
    "function": (
        lambda right: right.replace("def ", "function "),
        "def add(a, b):|def load(path):|def reset():|def draw(canvas, shape):",
    ),
    "declaration with let": (lambda right: "let " + right, "speed = 10|limit = 250|word = 'tea'|colours = []"),
    "declaration with var": (lambda right: "var " + right, "price = 9.5|index = 0|label = 'new'|pairs = {}"),
    "declaration with const": (lambda right: "const " + right, "RATE = 0.2|SIZE = 64|HOST = 'localhost'"),
    "semicolon": (
        lambda right: right + ";",
        "y = 1|return result|import sys|items.sort()|area = width * height",
    ),
    "comment with slashes": (
        lambda right: right.replace("#", "//"),
        "# sort by date|# not used|# open the file|# see below",
    ),
    "throw": (
        lambda right: right.replace("raise", "throw"),
        'raise IndexError("empty")|raise TypeError("text")|raise NotFound(path)',
    ),
    "catch": (
        lambda right: right.replace("except", "catch"),
        "except KeyError:|except OSError as err:|except (TypeError, IndexError):",
    ),
    "this": (
        lambda right: right.replace("self", "this"),
        "self.size = size|return self.total|self.items.clear()|self.owner = owner",
    ),
    "new": (
        lambda right: right.replace("= ", "= new "),
        "p = Point(1, 2)|stack = Stack()|car = Car('red')|tree = Tree(root)",
    ),
    "loop over a number": (
        lambda right: re.sub(r"range\((\w+)\)", r"\1", right),
        "for i in range(5):|for step in range(100):|for k in range(count):|for _ in range(3):",
    ),
    "foreach": (
        lambda right: right.replace("for ", "foreach "),
        "for guest in guests:|for file in files:|for player in team:",
    ),
    "square brackets in a call": (
        lambda right: re.sub(r"\((\w+)\)$", r"[\1]", right),
        "digits = range(5)|n = int(text)|first = next(lines)|s = str(number)",
    ),
    "list without commas": (
        lambda right: right.replace(", ", " "),
        "odds = [1, 3, 5]|sizes = (10, 20)|primes = {2, 3, 7}",
    ),
    "letters swapped": (
        _misspelled,
        "return total|import os|print(x)|while True:|class Node:|def start(self):|else:|yield item|lambda z: z|"
        "continue|global config|from re import sub|assert n > 0|try:|finally:|range(20)",
    ),
}
BY_HAND = (  # pairs that follow no rule: (wrong line, correct line)
    ("if x == null:", "if x is None:"),
    ("if ready == True", "if ready:"),
    ("return x, y)", "return x, y"),
    ("2nd = items[1]", "second = items[1]"),
    ('data = {"a": 1, "b" 2}', 'data = {"a": 1, "b": 2}'),
    ("self,name = name", "self.name = name"),
    ("sorted(items, reversed=True)", "sorted(items, reverse=True)"),
)


def examples() -> list[tuple[str, str]]:
    """All pairs (wrong line, correct line), from the rules and by hand."""
    made = [(wrong(right), right) for wrong, rights in RULES.values() for right in rights.split("|")]
    return [*made, *BY_HAND]
