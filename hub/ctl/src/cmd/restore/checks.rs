//! What an operator wants to be true of a restored database, asked of the finished file before it gets its name.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::str::FromStr;

/// The questions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checks {
    queries: Vec<Query>,
    integrity_check: bool,
}

/// A value parser for `--check`.
pub(super) fn checked(text: &str) -> Result<String, String> {
    text.parse::<Query>().map(|_| text.to_owned())
}

/// `SQL = value`: what lies behind the last ` = ` is the value, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Query {
    sql: String,
    value: String,
}

impl FromStr for Query {
    type Err = String;

    fn from_str(text: &str) -> Result<Query, String> {
        let (sql, value) = text
            .rsplit_once('=')
            .filter(|(sql, _)| !sql.trim().is_empty())
            .ok_or("write a query, =, and the value it must give: 'SELECT count(*) FROM t = 12'")?;
        Ok(Query { sql: sql.trim().to_owned(), value: value.trim().to_owned() })
    }
}

impl Checks {
    /// Of texts that [`checked`] has let through.
    pub(super) fn new(queries: &[String], integrity_check: bool) -> Checks {
        let queries = queries.iter().filter_map(|query| query.parse().ok()).collect();
        Checks { queries, integrity_check }
    }

    /// Asks the database at `path`, which nobody else has open; an error says what is not as it should be.
    pub(super) fn hold(&self, path: &Path) -> Result<(), String> {
        if self.queries.is_empty() && !self.integrity_check {
            return Ok(());
        }
        let database = open(path).map_err(|error| format!("SQLite cannot open it: {error}"))?;
        if self.integrity_check {
            let verdict = first(&database, "PRAGMA integrity_check")?;
            if verdict != "ok" {
                return Err(format!("the integrity check says: {verdict}"));
            }
        }
        for Query { sql, value } in &self.queries {
            let found = first(&database, sql)?;
            if found != *value {
                return Err(format!("{sql} gives {found}, not {value}"));
            }
        }
        Ok(())
    }
}

/// Without a lock, a log or a change: nobody else knows the file.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let text = path.display().to_string();
    let escaped = text.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)
}

fn first(database: &Connection, sql: &str) -> Result<String, String> {
    let ask = || {
        let mut statement = database.prepare(sql)?;
        let mut rows = statement.query([])?;
        let Some(row) = rows.next()? else { return Ok("no row".to_owned()) };
        Ok::<_, rusqlite::Error>(match row.get_ref(0)? {
            ValueRef::Null => "NULL".to_owned(),
            ValueRef::Integer(number) => number.to_string(),
            ValueRef::Real(number) => number.to_string(),
            ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
            ValueRef::Blob(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    };
    ask().map_err(|error| format!("{sql}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(queries: &[&str], integrity_check: bool) -> Checks {
        let queries = queries.iter().map(|query| query.parse().unwrap()).collect();
        Checks { queries, integrity_check }
    }

    #[test]
    fn what_does_not_hold_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a?b#c.db");
        let database = Connection::open(&path).unwrap();
        database.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1), ('two = 2')").unwrap();
        drop(database);
        let good = ["SELECT count(*) FROM t = 2", "SELECT x FROM t WHERE x = 1 = 1", "SELECT NULL = NULL"];
        checks(&good, true).hold(&path).unwrap();
        for (query, text) in [
            ("SELECT count(*) FROM t = 3", "gives 2, not 3"),
            ("SELECT x FROM t WHERE x = 7 = 7", "gives no row, not 7"),
            ("SELECT x FROM nowhere = 7", "no such table"),
            ("DELETE FROM t RETURNING x = 1", "readonly"),
        ] {
            let error = checks(&[query], false).hold(&path).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        assert!("= 3".parse::<Query>().is_err() && "SELECT 1".parse::<Query>().is_err());
        // A page in the middle is not what it was.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4096..4200].fill(0xee);
        std::fs::write(&path, bytes).unwrap();
        assert!(checks(&[], true).hold(&path).is_err());
        checks(&[], false).hold(&path).unwrap();
    }
}
