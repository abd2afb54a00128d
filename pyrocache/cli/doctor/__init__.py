"""The command ``pyrocache doctor``: observes a cluster and this host, and says what is wrong and what to do.

`gather` observes, which is all of the I/O; `observed` has what it returns; `findings` judges that, as pure functions;
`command` prints the findings.

Thread safety: runs in the main thread; `gather` starts threads of its own.
"""
