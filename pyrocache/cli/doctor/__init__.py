"""The command ``pyrocache doctor``: observes a cluster and this host, and says what is wrong and what to do.

`gather` does the observing, and has all of the I/O. `observed` has the classes of what it returns. `findings` judges
that, in pure functions. `command` prints the findings.

Thread safety: runs in the main thread; `gather` starts threads of its own.
"""
