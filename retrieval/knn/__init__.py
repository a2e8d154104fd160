"""kNN-LM: the datastore of hidden states, its search, and decoding with it."""
