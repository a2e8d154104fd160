"""Alembic migrations, run by ``retrieval.store.database`` when a library is opened."""
