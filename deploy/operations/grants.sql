-- What the roles of roles.sql may do, for psql, once in each database before its first migration or restore:
--   psql --dbname=tasks --file=deploy/operations/grants.sql
\set ON_ERROR_STOP on
BEGIN;
GRANT CREATE ON SCHEMA public TO tasks_owner;
GRANT USAGE ON SCHEMA public TO tasks_service;
-- For the tables of later migrations, too.
ALTER DEFAULT PRIVILEGES FOR ROLE tasks_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO tasks_service;
COMMIT;
