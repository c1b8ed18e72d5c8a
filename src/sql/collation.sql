-- Whether the library that compares texts has another version than the one by which the indexes were
-- built: a row with both versions, or none. Then an index may hide rows that are there.
--
-- Asked once a connection, together with session.sql and as warily. PostgreSQL 14 has neither the
-- column nor the function, and cannot tell.
SELECT pg_database.datcollversion AS built_by,
       pg_catalog.pg_database_collation_actual_version(pg_database.oid) AS compared_by
  FROM pg_catalog.pg_database
 WHERE pg_database.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
   AND pg_database.datcollversion
       OPERATOR(pg_catalog.<>) pg_catalog.pg_database_collation_actual_version(pg_database.oid);
