//! Answers of one row, and how they prove that they belong to their question.
//!
//! A faulty server or pooler may say `ReadyForQuery` or a whole answer once too often. From then on
//! each answer would be read as that to the next question, and one caller's token taken for another's.

use sqlx::{
    FromRow, Postgres, Row, ValueRef,
    postgres::{PgArguments, PgRow},
    query::Query,
};

use super::{Connection, failure, is_in_no_row, session::in_time};
use crate::{error::Error, statement::Statement};

/// A statement with its parameters.
type Question<'q> = Query<'q, Postgres, PgArguments>;

impl Connection {
    /// The grants, tables and columns that the role or the database lacks, and the tables with
    /// row-level security, if there are any. The tables that not every configuration reads count if
    /// the text `named` names them.
    ///
    /// # Errors
    ///
    /// As [`Connection::row`].
    pub async fn missing_grants(&mut self, named: &str) -> Result<Option<String>, Error> {
        let text = Statement::MISSING_GRANTS.in_schema(&self.schema);
        let missing = sqlx::query(&text).bind(named);
        self.row("looking for what is missing", missing).await.map(|(missing,)| missing)
    }

    /// The row that a statement always has, met while `doing` something.
    ///
    /// # Errors
    ///
    /// As [`failure()`]; [`Error::DatabaseUnavailable`] if a connection that was idle gives no answer
    /// within a second, and if the answer has no row.
    pub async fn row<T: for<'r> FromRow<'r, PgRow>>(
        &mut self,
        doing: &str,
        query: Question<'_>,
    ) -> Result<T, Error> {
        let row = self.answer(query).await?.and_then(|row| T::from_row(&row));
        row.map_err(|error| failure(doing, &error))
    }

    /// What a lookup finds while `doing` something: the columns of its row, or nothing if the first of
    /// them is null. The lookup's last parameter is a number that the row repeats as `asked`.
    ///
    /// # Errors
    ///
    /// As [`Connection::row`]; [`Error::DatabaseUnavailable`] if the row has another number.
    pub async fn lookup<T: for<'r> FromRow<'r, PgRow>>(
        &mut self,
        doing: &str,
        query: Question<'_>,
    ) -> Result<Option<T>, Error> {
        let asked: i64 = rand::random();
        let found = match self.answer(query.bind(asked)).await? {
            Ok(row) if row.try_get("asked").ok() != Some(asked) => Err(sqlx::Error::RowNotFound),
            Ok(row) if row.try_get_raw(0).is_ok_and(|it| it.is_null()) => Ok(None),
            Ok(row) => T::from_row(&row).map(Some),
            Err(error) if is_in_no_row(&error) => Ok(None),
            Err(error) => Err(error),
        };
        found.map_err(|error| failure(doing, &error))
    }

    async fn answer(&mut self, query: Question<'_>) -> Result<Result<PgRow, sqlx::Error>, Error> {
        let row = query.persistent(self.keeps_statements).fetch_one(&mut self.session);
        let row = in_time(self.answers_by, row).await?;
        self.answers_by = self.answers_by.filter(|_| row.is_err());
        Ok(row)
    }
}
