"""A web application beside a paused and a killed node: ``python -m benchmarks web``."""
