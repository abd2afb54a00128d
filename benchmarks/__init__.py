"""Benchmarks of pyrocache beside what one might use instead, on one machine and in one run: ``python -m benchmarks``.

- `command` is the command line; `cases` has one module for each thing that is measured.
- `field` starts the servers of a case (`servers`, `stock_pyro`) and says how clients reach them (`clients`).
- `crew` is the client processes that make the calls (`workloads`); `rounds` has the contenders take turns and
  compares them; `procfs` tells the CPU time and memory of the servers.
- `results` is what is kept of a run (`machine` tells where it was), `targets` what we want of it, `tables` and
  `report` show it.
"""
