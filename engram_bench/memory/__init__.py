"""Engram-style conditional memory: looks up hashed n-grams in trained tables."""
