"""A pytest plugin that sends Ctrl-C (KeyboardInterrupt) after the third test of a run."""

import pytest

_seen = []


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid):
    _seen.append(nodeid)
    if len(_seen) == 3:
        raise KeyboardInterrupt
