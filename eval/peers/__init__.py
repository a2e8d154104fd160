"""Other engines on the same weights and the same token ids, each in an environment of its own.

`setup.py` builds an environment, `convert.py` brings a transformers checkpoint into the engine's format,
`workers/` holds a small program for each engine, `client.py` talks to it in lines of JSON.
"""
