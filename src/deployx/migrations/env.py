"""What Alembic runs for each command: the connection comes from the program, in its transaction."""

from alembic import context

from deployx.db.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
