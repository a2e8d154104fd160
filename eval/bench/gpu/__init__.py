"""What `gpu_check` measures on a GPU, and what a machine without one can tell of it."""
