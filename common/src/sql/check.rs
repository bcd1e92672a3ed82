//! "SQL = value": what an operator wants to be true of a restored database. The same words mean the same in the configuration of
//! drills, for `hubctl restore --check` and in an order to a node.
//!
//! Meaning
//! - Everything before the last `=` is the statement, everything behind it the value, both without the white space around them.
//!   Neither may be empty, and the last `=` must not be one of SQL's own (`>=`, `<=`, `!=`, `==`): a value that was forgotten is
//!   refused instead of compared. What has a `=` in its value, or none at all, is asked by a comparison: `SELECT x = '' ... = 1`.
//! - The statement is one, and only reads. The first column of its first row is the answer. No row is no answer: the check does not
//!   hold, whatever the value.
//! - `NULL` is how NULL is written. An INTEGER must be the same number in decimal digits, a REAL the same number in any notation
//!   (`30`, `30.0`, `3e1`). A TEXT must be the same to the letter; a BLOB in hexadecimal digits, small or large.

use super::{Cell, Reader, SqlError};
use std::fmt;
use std::str::FromStr;

/// Letters of an answer that an error shows.
const SHOWN: usize = 200;

/// See the module doc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub(super) sql: String,
    pub(super) value: String,
}

/// It is no check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCheck {
    /// Without statement, `=`, or value.
    #[error("{0:?} is not of the form \"SQL = value\", such as \"SELECT count(*) > 0 FROM users = 1\"")]
    Form(String),
    /// The last `=` is a part of the statement.
    #[error("the last = of {0:?} belongs to a comparison: write = and the value behind the statement")]
    Comparison(String),
}

/// Why a check does not hold.
#[derive(Debug, thiserror::Error)]
pub enum Unmet {
    /// It was not answered.
    #[error("the check {sql:?} cannot be run: {error}")]
    Unanswered {
        /// The statement.
        sql: String,
        /// Why.
        error: SqlError,
    },
    /// Nothing is there.
    #[error("the check {sql:?} gives no row, not {value}")]
    NoRow {
        /// The statement.
        sql: String,
        /// What was wanted.
        value: String,
    },
    /// Something else is there.
    #[error("the check {sql:?} gives {found}, not {value}")]
    Other {
        /// The statement.
        sql: String,
        /// What it gave; the beginning of it.
        found: String,
        /// What was wanted.
        value: String,
    },
}

impl FromStr for Check {
    type Err = NoCheck;

    fn from_str(text: &str) -> Result<Check, NoCheck> {
        let form = || NoCheck::Form(text.to_owned());
        let (before, value) = text.rsplit_once('=').ok_or_else(form)?;
        let (sql, value) = (before.trim(), value.trim());
        if sql.is_empty() || value.is_empty() {
            return Err(form());
        }
        if before.ends_with(['<', '>', '!', '=']) {
            return Err(NoCheck::Comparison(text.to_owned()));
        }
        Ok(Check { sql: sql.to_owned(), value: value.to_owned() })
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.sql, self.value)
    }
}

impl Check {
    /// Asks. Blocks; an interrupted statement is an error.
    pub fn run(&self, reader: &Reader) -> Result<(), Unmet> {
        let Check { sql, value } = self.clone();
        match reader.first(&sql) {
            Err(error) => Err(Unmet::Unanswered { sql, error }),
            Ok(None) => Err(Unmet::NoRow { sql, value }),
            Ok(Some(found)) if self.is(&found) => Ok(()),
            Ok(Some(found)) => Err(Unmet::Other { sql, found: shown(&found.to_string()), value }),
        }
    }

    pub(super) fn is(&self, found: &Cell) -> bool {
        match found {
            Cell::Real(found) => self.value.parse() == Ok(*found),
            Cell::Blob(_) => self.value.eq_ignore_ascii_case(&found.to_string()),
            Cell::Null | Cell::Integer(_) | Cell::Text(_) => self.value == found.to_string(),
        }
    }
}

fn shown(found: &str) -> String {
    match found.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &found[..at]),
        None => found.to_owned(),
    }
}
