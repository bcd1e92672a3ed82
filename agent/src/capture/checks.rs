//! Assertions about a database file that nobody else has open: "SQL = value".
//!
//! The statement is everything before the last `=`; the first column of its first row must be the value, as text.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;

/// Runs them in order; `Err` says which one does not hold, and what was found. The file is read only.
pub fn check(path: &Path, checks: &[String]) -> Result<(), String> {
    let uri = format!("file:{}?immutable=1", escaped(path));
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection =
        Connection::open_with_flags(uri, flags).map_err(|e| format!("the restored database: {e}"))?;
    for check in checks {
        let Some((sql, value)) = check.rsplit_once('=') else {
            return Err(format!("the check {check:?} is not of the form \"SQL = value\""));
        };
        let (sql, value) = (sql.trim(), value.trim());
        let found = connection
            .query_row(sql, [], |row| row.get_ref(0).map(text))
            .map_err(|e| format!("the check {sql:?} cannot be run on the restored database: {e}"))?;
        if found != value {
            return Err(format!("the check {sql:?} gives {found:?} on the restored database, not {value:?}"));
        }
    }
    Ok(())
}

fn text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn escaped(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.chars()
        .map(|c| if matches!(c, '%' | '?' | '#') { format!("%{:02x}", c as u32) } else { c.to_string() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_hold_is_named_with_what_was_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b?c#d%.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch("CREATE TABLE t(a, b); INSERT INTO t VALUES (1, 'x'), (NULL, x'0aff')").unwrap();
        drop(db);
        let run = |check_it: &str| check(&path, &[check_it.to_owned()]);
        for holds in [
            "SELECT count(*) FROM t = 2",
            "SELECT count(*) FROM t WHERE a = 1 = 1",
            "SELECT b FROM t WHERE a=1=x",
            "SELECT b FROM t WHERE a IS NULL = 0aff",
            "SELECT a FROM t WHERE a IS NULL = NULL",
            "PRAGMA integrity_check = ok",
        ] {
            assert_eq!(run(holds), Ok(()), "{holds}");
        }
        for (fails, word) in [
            ("SELECT count(*) FROM t = 3", "\"2\""),
            ("SELECT 1", "form"),
            ("SELECT * FROM nowhere = 1", "nowhere"),
            ("DELETE FROM t = 1", "cannot be run"),
            ("SELECT a FROM t WHERE a > 5 = 1", "cannot be run"),
        ] {
            let error = run(fails).unwrap_err();
            assert!(error.contains(word), "{fails}: {error}");
        }
        assert_eq!(run("SELECT count(*) FROM t = 2"), Ok(()), "nothing was deleted");
    }
}
