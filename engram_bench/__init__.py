"""engram_bench: measures what Engram-style memory adds to a small language model, with confidence intervals."""

from engram_bench.shipped import CHECKOUT

__version__ = "0.1.0"

if CHECKOUT:  # a checkout has fixtures/ beside the package, an install has it inside
    __path__.append(str(CHECKOUT))
