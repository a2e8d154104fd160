"""A Model Context Protocol server over the library (extra ``mcp``): on stdio, and inside the service at ``/mcp``.

Both work in the process that has the library open, with the same parts as every other front end; a client elsewhere
speaks to a running service over HTTP, under the service's keys.
"""
