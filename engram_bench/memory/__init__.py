"""Engram-style conditional memory: hashed n-gram lookup into trained tables."""
