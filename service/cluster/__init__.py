"""The same application on more than one machine: Ray Serve around it, Ray Data in front of the index.

`affinity` decides which replica a request goes to and knows nothing of Ray; `gateway` and `replica` carry HTTP between
the two; `router`, `deployment` and `ingest` are where Ray is imported, when they are called.
"""
