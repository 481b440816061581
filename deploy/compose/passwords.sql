-- The passwords of the roles of roles.sql, from the environment of PostgreSQL's container.
\getenv migration MIGRATION_PASSWORD
\getenv service DB_PASSWORD
ALTER ROLE tasks_migration PASSWORD :'migration';
ALTER ROLE tasks_service PASSWORD :'service';
