"""The cluster view: which nodes there are, and which node owns which key. Pure: no I/O, no threads, no clock."""
