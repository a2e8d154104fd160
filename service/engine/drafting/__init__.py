"""What the engine and the drafters have of each other."""
