"""Who may ask, how often, and what was asked already: shared by all processes of one database."""
