//! What SQLite itself says of a restored file: the one place of the hub that reads a database as one.

use super::rules::Assertion;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, InterruptHandle, OpenFlags};
use std::path::Path;

/// Faults of `integrity_check` that are told.
const FAULTS: u32 = 5;

/// What is to be looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Checks {
    pub(super) integrity: bool,
    pub(super) assertions: Vec<Assertion>,
}

/// Looks; the first thing that does not hold is the error. `opened` gets the handle that stops it. The file is read only.
/// Blocking.
pub(super) fn run(path: &Path, checks: &Checks, opened: impl FnOnce(InterruptHandle)) -> Result<(), String> {
    if !checks.integrity && checks.assertions.is_empty() {
        return Ok(());
    }
    // Nobody else has it, and it has no log: without `immutable` a database in WAL mode could not be opened for reading.
    let uri = format!("file:{}?immutable=1", escaped(path));
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let unreadable = |error| format!("SQLite cannot read the restored database: {error}");
    let connection = Connection::open_with_flags(uri, flags).map_err(unreadable)?;
    opened(connection.get_interrupt_handle());
    if checks.integrity {
        integrity(&connection)?;
    }
    checks.assertions.iter().try_for_each(|assertion| assert(&connection, assertion))
}

fn integrity(connection: &Connection) -> Result<(), String> {
    let fault =
        |error: rusqlite::Error| format!("integrity_check cannot be run on the restored database: {error}");
    let mut statement = connection.prepare(&format!("PRAGMA integrity_check({FAULTS})")).map_err(fault)?;
    let said = statement.query_map([], |row| row.get::<_, String>(0)).map_err(fault)?;
    let said: Vec<String> = said.collect::<Result<_, _>>().map_err(fault)?;
    if said == ["ok"] {
        return Ok(());
    }
    Err(format!(
        "integrity_check of the restored database: {}; it is what was captured, so the database itself is damaged: look at \
         it on its node",
        said.join("; ")
    ))
}

fn assert(connection: &Connection, assertion: &Assertion) -> Result<(), String> {
    let Assertion { sql, value } = assertion;
    let found = connection
        .query_row(sql, [], |row| row.get_ref(0).map(text))
        .map_err(|error| format!("the check {sql:?} cannot be run on the restored database: {error}"))?;
    if found != *value {
        return Err(format!("the check {sql:?} gives {found:?} on the restored database, not {value:?}"));
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
    let special = |c: char| matches!(c, '%' | '?' | '#');
    let text = path.to_string_lossy();
    text.chars().map(|c| if special(c) { format!("%{:02x}", c as u32) } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn made(path: &Path) {
        let db = Connection::open(path).unwrap();
        db.execute_batch(
            "PRAGMA journal_mode=WAL; CREATE TABLE t(a, b); CREATE INDEX i ON t(a);
             WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 2000)
             INSERT INTO t SELECT x, hex(randomblob(20)) FROM n",
        )
        .unwrap();
    }

    fn checked(path: &Path, integrity: bool, assertions: &[&str]) -> Result<(), String> {
        let assertions = assertions.iter().map(|text| text.parse().unwrap()).collect();
        run(path, &Checks { integrity, assertions }, |_| {})
    }

    #[test]
    fn what_does_not_hold_is_named_with_what_was_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b?c#d%.db");
        made(&path);
        assert_eq!(
            checked(&path, true, &["SELECT count(*) FROM t = 2000", "SELECT a FROM t WHERE a=7 = 7"]),
            Ok(())
        );
        for (fails, word) in [
            ("SELECT count(*) FROM t = 3", "\"2000\""),
            ("SELECT * FROM nowhere = 1", "nowhere"),
            ("DELETE FROM t = 1", "cannot be run"),
        ] {
            let error = checked(&path, false, &[fails]).unwrap_err();
            assert!(error.contains(word), "{fails}: {error}");
        }
    }

    #[test]
    fn a_damaged_database_is_found_and_a_check_can_be_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        made(&path);
        let endless =
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n = 1";
        let checks = Checks { integrity: false, assertions: vec![endless.parse().unwrap()] };
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let stopped = run(&path, &checks, |handle| {
            std::thread::spawn(move || {
                while !until.load(Ordering::Relaxed) {
                    handle.interrupt();
                    std::thread::yield_now();
                }
            });
        });
        over.store(true, Ordering::Relaxed);
        assert!(stopped.unwrap_err().contains("interrupted"));
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 4096].fill(0xaa);
        std::fs::write(&path, bytes).unwrap();
        assert!(checked(&path, true, &[]).unwrap_err().contains("integrity"));
        assert_eq!(checked(&path, false, &[]), Ok(()));
    }
}
