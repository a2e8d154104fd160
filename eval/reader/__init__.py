"""The recipe of the embedded reader: text, examples, initialisation, training, its figures."""
