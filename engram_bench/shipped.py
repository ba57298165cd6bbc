"""Paths of the shipped patterns and suites: beside the package in a checkout, inside it in an install."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = None if (PACKAGE / "suites").is_dir() else PACKAGE.parent
PATTERNS = (CHECKOUT or PACKAGE) / "patterns"
SUITES = (CHECKOUT or PACKAGE) / "suites"
REPORTS = (CHECKOUT or Path()) / "reports" / "runs"  # an install writes below the current folder
