"""Documents in: read, parsed, chunked, embedded, stored; at once or in the background."""
