//! The statements as the function sends them.

use sqlx::{Postgres, postgres::PgArguments, query::Query};
use synapse_media_usage::{
    query::{Direction, MediaUsageQuery},
    statement::{Shape, Statement},
};

/// What is sent of a statement for the usual schema.
pub fn text(statement: Statement) -> String {
    statement.in_schema("public")
}

/// The same of the statement for a page.
pub fn page(shape: Shape) -> String {
    text(Statement::page(shape))
}

/// A page statement with the parameters of a query, as the function binds them.
pub fn bound<'q>(sql: &'q str, query: &'q MediaUsageQuery) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql)
        .bind(query.limit)
        .bind(query.from)
        .bind(query.after)
        .bind(query.until)
        .bind(query.search_term.as_ref().map(|term| &term.0))
        .bind(query.order_by.as_str())
        .bind(query.dir == Direction::Backwards)
}
