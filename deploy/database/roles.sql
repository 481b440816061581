-- The database and its roles. Run it once, as the server's administrator, then give two of them their
-- passwords: psql asks for them and sends verifiers, so that no password is in a log.
--
--     psql "$ADMINISTRATOR_URL" --file roles.sql
--     psql "$ADMINISTRATOR_URL" --command '\password tasks_migration' --command '\password tasks_service'
--
-- tasks_migration owns the schema. tasks_service reads and writes rows, and cannot change the schema.
-- tasks_operator reads; on RDS it logs in with an IAM token.
\set ON_ERROR_STOP on

CREATE ROLE tasks_migration LOGIN;
CREATE ROLE tasks_service LOGIN;
CREATE ROLE tasks_operator LOGIN;
GRANT pg_read_all_data, pg_monitor TO tasks_operator;

-- Who creates a database for another role must be its member.
GRANT tasks_migration TO CURRENT_USER;
CREATE DATABASE tasks OWNER tasks_migration ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE tasks FROM PUBLIC;
GRANT CONNECT ON DATABASE tasks TO tasks_service, tasks_operator;

\connect tasks
ALTER DEFAULT PRIVILEGES FOR ROLE tasks_migration
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO tasks_service;

-- Only RDS has this role; its members log in with IAM tokens, and with nothing else.
SELECT 'GRANT rds_iam TO tasks_operator' WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_iam')
\gexec
