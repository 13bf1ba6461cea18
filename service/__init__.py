"""The microservice: HTTP in, a bounded queue of jobs, a worker that drives the engine, images out.

A request passes, in order: `middleware` → `api` → `submission` → `job_queue` → `worker` → `images`.
Nothing here imports torch except `engine_loader`, which the worker's thread imports when it loads
the weights: the API is up, and answers its probes, before the model is.
"""

__version__ = "0.1.0"
