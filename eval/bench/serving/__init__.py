"""A service under load and under attack, several of them, and what they answer with: tables, tools, batches."""
