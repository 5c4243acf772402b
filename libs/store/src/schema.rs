//! The schema in which all that is ours lies. Callers share the database: nothing is made, or looked for, anywhere else,
//! whatever a `search_path` says.
//!
//! Every statement, and every migration, names what it uses with its schema, literally `carillon.jobs`. Where the schema is
//! called otherwise, that word is replaced on the statement's way to the server, in one place ([`crate::bounded`]). The names
//! of advisory locks, which are of the whole database, are written in the same way (`'carillon.queues'`), so that
//! installations side by side do not wait for each other. For nothing else may the word, with its dot, stand in a statement:
//! the tests below read all of them.

use std::sync::Arc;

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgStatement};
use sqlx::{AssertSqlSafe, Execute, Postgres, SqlSafeStr as _, SqlStr};

/// What it is called unless something else is set.
pub const DEFAULT: &str = "carillon";

/// So it stands in a statement, before the name of a table, a function or a lock.
const IN_STATEMENTS: &str = "carillon.";

/// What Postgres cuts names off at, in bytes.
const NAME_MAX: usize = 63;

/// The name of a schema that may be written into a statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schema(Option<Arc<str>>);

impl Schema {
    /// A schema by its name.
    ///
    /// # Errors
    /// The rule that the name breaks, readable after the name of a setting.
    pub fn new(name: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        if !begins || !name.chars().all(plain) || name.len() > NAME_MAX {
            return Err(format!("must be 1 to 63 of a-z, 0-9 and '_', the first no digit, is {name:?}"));
        }
        if name.starts_with("pg_") {
            return Err(format!("must not begin with pg_, as only what belongs to Postgres does, is {name:?}"));
        }
        Ok(Self((name != DEFAULT).then(|| name.into())))
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        self.0.as_deref().unwrap_or(DEFAULT)
    }

    /// A statement as it is sent. In quotes, since a schema may be called `order`.
    pub(crate) fn put_into(&self, sql: SqlStr) -> SqlStr {
        match &self.0 {
            None => sql,
            // The name was checked.
            Some(name) => AssertSqlSafe(sql.as_str().replace(IN_STATEMENTS, &format!("\"{name}\"."))).into_sql_str(),
        }
    }

    /// The key of an advisory lock, which is of the whole database: `key` for the default, for any other schema one of its own.
    pub(crate) fn lock_key(&self, key: i32) -> i32 {
        // FNV-1a: the same in all processes, whatever built them.
        let hash = |name: &Arc<str>| {
            name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
        };
        key ^ self.0.as_ref().map_or(0, hash).cast_signed()
    }

    /// A query whose statement is sent with this schema in it.
    pub(crate) fn query<E>(&self, query: E) -> InSchema<E> {
        InSchema { query, schema: self.clone() }
    }
}

/// See [`Schema::query`].
pub(crate) struct InSchema<E> {
    query: E,
    schema: Schema,
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for InSchema<E> {
    fn sql(self) -> SqlStr {
        self.schema.put_into(self.query.sql())
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.query.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.query.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.query.persistent()
    }
}

#[cfg(test)]
mod tests;
