"""Tables: the same questions asked of every document of a shelf, one row a document, one column a question."""
