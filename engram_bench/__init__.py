"""engram_bench: what is Engram-style memory worth on a small language model? Measured, with error bars."""

__version__ = "0.1.0"
