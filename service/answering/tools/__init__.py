"""Tools that a model may call: how it is told of them, how it writes a call, and how its calls are read."""
