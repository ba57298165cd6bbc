"""Many runs from one file: what ``engram-bench sweep`` does.

`plan` reads the file, `execute` makes one run of it, `local` and `cluster` make all of them, `search` chooses runs as
it goes, and `table` shows what came out. Each run is one of the suites, with a folder and a report of its own.
"""
