"""From a name to a model that the engine can run."""
