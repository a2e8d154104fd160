"""The service: the engine, answers over documents, and the front ends."""
