"""Features composed of several commands: bulk calls, scan, compute, load once, memoize, locks."""
