-- The roles of a database, for psql, once in each new database:
--   OWNER_PASSWORD=... SERVICE_PASSWORD=... psql --dbname=tasks --file=deploy/operations/roles.sql
-- tasks_owner is for `task-service migrate`; tasks_service_a and _b are for `task-service serve`: two, so that
-- the password changes while the other one is in use.
\set ON_ERROR_STOP on
\getenv owner_password OWNER_PASSWORD
\getenv service_password SERVICE_PASSWORD
BEGIN;
CREATE ROLE tasks_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE tasks_service NOLOGIN;
CREATE ROLE tasks_service_a LOGIN PASSWORD :'service_password' IN ROLE tasks_service;
CREATE ROLE tasks_service_b NOLOGIN IN ROLE tasks_service;

GRANT CREATE ON SCHEMA public TO tasks_owner;
GRANT USAGE ON SCHEMA public TO tasks_service;

-- What later migrations create, too. Not a superuser, as of RDS, must be a member for this.
GRANT tasks_owner TO CURRENT_USER;
ALTER DEFAULT PRIVILEGES FOR ROLE tasks_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO tasks_service;
COMMIT;
