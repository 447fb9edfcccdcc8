"""PostgreSQL for the services that keep state: embedded server, roles, migrations, pool."""
