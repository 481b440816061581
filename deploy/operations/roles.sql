-- The roles, for psql, once on each server:
--   OWNER_PASSWORD=... SERVICE_PASSWORD=... psql --file=deploy/operations/roles.sql
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
-- A role that is no superuser, as on RDS, must be a member to set the privileges of grants.sql.
GRANT tasks_owner TO CURRENT_USER;
COMMIT;
