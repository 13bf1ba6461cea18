"""The whole service as it is run, without containers: proxy, APIs, workers, Redis, Prometheus.

`python -m tests.full_stack` measures its throughput against that of its workers.
"""
