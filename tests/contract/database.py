"""The throwaway PostgreSQL under Synapse, its tables, and the recorded rows."""

import contextlib
import json
import re
import subprocess

from cases import RECORDED
from progress import ROOT, Failed

SCHEMAS = {int(path.stem.rpartition("-")[2]): path for path in (ROOT / "tests/schema").glob("synapse-*.sql")}

# What can be told of a table that matters to who reads it, one line each. Foreign keys are left out, because the
# schemas leave out the tables that they refer to, and so are the constraints into which PostgreSQL 18 makes NOT NULL.
FACTS = """
    WITH tables AS (
        SELECT oid, relname, relkind FROM pg_class
        WHERE relnamespace = to_regnamespace(:'schema') AND relname = ANY (string_to_array(:'tables', ' '))
    )
    SELECT format('table %s (%s)', relname, CASE relkind WHEN 'r' THEN 'plain' ELSE relkind::text END) FROM tables
    UNION ALL
    SELECT concat_ws(' ', 'column', relname || '.' || attname, format_type(atttypid, atttypmod),
                     CASE WHEN attnotnull THEN 'NOT NULL' END, 'DEFAULT ' || pg_get_expr(adbin, adrelid))
    FROM tables JOIN pg_attribute ON attrelid = oid AND attnum > 0 AND NOT attisdropped
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    UNION ALL
    SELECT concat_ws(' ', 'index', replace(pg_get_indexdef(indexrelid), format(' ON %I.', :'schema'), ' ON '),
                     CASE WHEN NOT indisvalid THEN 'INVALID' END)
    FROM tables JOIN pg_index ON indrelid = oid
    UNION ALL
    SELECT format('constraint %s on %s: %s', conname, relname, pg_get_constraintdef(pg_constraint.oid))
    FROM tables JOIN pg_constraint ON conrelid = tables.oid AND contype NOT IN ('f', 'n')
"""

# Whatever columns the release has of those that the rows have.
MOVE_ROWS = r"""
    SELECT format('INSERT INTO %1$s (%2$s) SELECT %2$s FROM recorded.%1$s', theirs.table_name,
                  string_agg(quote_ident(column_name), ', '))
    FROM information_schema.columns AS ours
    JOIN information_schema.columns AS theirs USING (table_name, column_name)
    WHERE ours.table_schema = 'recorded' AND theirs.table_schema = 'public'
    GROUP BY theirs.table_name
    \gexec
"""


@contextlib.contextmanager
def cluster():
    """A server without anything in it; yields what tests/tools/postgres says of it."""
    # In a session of its own, so that Ctrl-C reaches only this program, which then ends the cluster in order.
    server = subprocess.Popen(
        [ROOT / "tests/tools/postgres", "serve"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )
    try:
        ready = server.stdout.readline()
        if not ready:
            raise Failed("no PostgreSQL could be started")
        yield json.loads(ready)
    finally:
        server.stdin.close()
        server.wait()


class Database:
    """The one that Synapse makes its tables in."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.psql("CREATE ROLE synapse LOGIN;", database="postgres")
        self.psql("CREATE DATABASE synapse OWNER synapse;", database="postgres")

    def psql(self, script, database="synapse", **variables):
        """Runs a script of psql's; returns the rows that it prints."""
        command = [
            f"{self.cluster['bin']}/psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", self.cluster["socket_dir"],
            "-p", str(self.cluster["port"]), "-U", "postgres", "-d", database,
            *(word for name, value in variables.items() for word in ("-v", f"{name}={value}")),
        ]
        done = subprocess.run(command, input=script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise Failed(f"psql: {done.stderr.strip()}")
        return done.stdout.splitlines()

    def count_updates(self):
        """Synapse's background updates that have not finished."""
        return int(self.psql("SELECT count(*) FROM background_updates;")[0])

    def versions(self):
        """The server's version, and that of Synapse's schema."""
        server, schema = self.psql("SHOW server_version; SELECT version FROM schema_version;")
        return server, int(schema)

    def facts(self, schema, tables):
        return set(self.psql(f"{FACTS};", schema=schema, tables=" ".join(tables)))

    def load_schema(self, schema, path, rows=""):
        self.psql(f"CREATE SCHEMA {schema}; SET search_path = {schema};\n{path.read_text()}\n{rows}")

    def changed_tables(self, version):
        """How the tables that the function reads differ from those of tests/schema, one line each.

        A release between two of those schemas may have anything that one of them has, and has all that both have.
        """
        older = max((number for number in SCHEMAS if number <= version), default=min(SCHEMAS))
        newer = min((number for number in SCHEMAS if number > version), default=older)
        tables = re.findall(r"^CREATE TABLE (\w+)", SCHEMAS[newer].read_text(), re.MULTILINE)
        recorded = []
        for number in (older, newer):
            self.load_schema("compared", SCHEMAS[number])
            recorded.append(self.facts("compared", tables))
            self.psql("SET client_min_messages = warning; DROP SCHEMA compared CASCADE;")
        here = self.facts("public", tables)
        gone = [f"gone: {fact}" for fact in recorded[0] & recorded[1] - here]
        return sorted(gone) + sorted(f"new: {fact}" for fact in here - (recorded[0] | recorded[1]))

    def load_rows(self):
        """Fills Synapse's tables with the recorded rows."""
        self.load_schema("recorded", SCHEMAS[max(SCHEMAS)], (RECORDED / "dataset.sql").read_text())
        self.psql(MOVE_ROWS)
        self.psql("SET client_min_messages = warning; DROP SCHEMA recorded CASCADE;")
        # As autovacuum would.
        self.psql("ANALYZE;")

    def url_of_function(self, password):
        """Makes the function's role as its documentation says; returns the URL by which the function logs in."""
        self.psql((ROOT / "src/sql/role.sql").read_text())
        self.psql(f"ALTER ROLE media_usage PASSWORD '{password}';")
        return f"postgres://media_usage:{password}@127.0.0.1:{self.cluster['port']}/synapse"
