"""Where the shipped patterns and suites lie: in folders of a checkout, or inside the package where it is installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = None if (PACKAGE / "suites").is_dir() else PACKAGE.parent
PATTERNS = (CHECKOUT or PACKAGE) / "patterns"
SUITES = (CHECKOUT or PACKAGE) / "suites"
REPORTS = (CHECKOUT or Path()) / "reports" / "runs"  # an install has no folder of its own for results
