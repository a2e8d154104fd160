"""The forward pass: the model over pages, alone or over several processes."""
