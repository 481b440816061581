"""Measure what a call costs, beside other services on the same machine and in the same run.

    python -m benchmarks quick      the cost of five calls, in under three minutes
    python -m benchmarks full       all services, calls, workers and sizes, with plots
    python -m benchmarks guard      fail if a GetTask costs more than the committed figure allows
    python -m benchmarks python     the same build on several interpreters

| module | concern |
|---|---|
| `plans.py` | what is measured |
| `services/` | the services under test; `subjects.py` states how each is started |
| `requests.py` | the bytes of each call, and the check of its answer |
| `load.py` | h2load: throughput and latencies |
| `processes.py`, `database.py` | CPU, memory and round trips |
| `rounds.py` | interleaved rounds, medians and spread |
| `watches.py` | what open watches cost |
| `report.py`, `plots.py` | results as Markdown, JSON and SVG |
| `guard.py` | the limit that CI checks |
"""
