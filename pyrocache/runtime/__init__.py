"""What a process needs of its operating system: children, signals, spin-waiting."""
