"""The database: schema, connections, migrations and the few bulk statements that both engines share."""
