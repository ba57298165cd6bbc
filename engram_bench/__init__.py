"""engram_bench: what is Engram-style memory worth on a small language model? Measured, with error bars."""

from engram_bench.shipped import CHECKOUT

__version__ = "0.1.0"

if CHECKOUT:  # an install has fixtures/ inside the package, a checkout beside it
    __path__.append(str(CHECKOUT))
