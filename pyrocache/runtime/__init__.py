"""Services of the operating system: child processes, signals, fork hooks, byte streams, spin-wait."""
