"""What is built from the commands: bulk, scan, compute, load once, memoize, locks."""
