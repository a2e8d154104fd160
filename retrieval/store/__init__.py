"""SQL is the truth: tables, connections, migrations, and the operations on them."""
