"""A history checker: real processes, real faults, and what each key's history proves. See `tests.chaos.checker`."""
