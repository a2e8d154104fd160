"""What a model is asked: words by its size, documents as data, and the layout of a prompt."""
