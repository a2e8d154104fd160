"""Alembic's entry: runs on the connection that ``retrieval.store.database`` passes in the configuration."""

from alembic import context

from retrieval.store.tables import metadata

connection = context.config.attributes["connection"]
# SQLite alters a table by copying it ("batch").
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    transaction_per_migration=False,
)
context.run_migrations()
