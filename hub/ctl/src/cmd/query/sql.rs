//! One statement on a restored copy: read-only in three ways, bounded in rows, bytes and time.
//!
//! Invariants
//! - The file is opened read-only and as one that never changes, so nothing appears beside it; the connection refuses to write; a
//!   statement that could write anything, anywhere, is refused before it runs.
//! - An answer is at most [`MAX_BYTES`], whatever the statement makes.

use anyhow::{anyhow, bail};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, InterruptHandle, OpenFlags};
use std::path::Path;

/// Of one answer: beyond it the statement asks for too much.
const MAX_BYTES: usize = 64 << 20;

/// What SQLite has in a cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    /// NULL.
    Null,
    /// INTEGER.
    Integer(i64),
    /// REAL.
    Real(f64),
    /// TEXT; what is not UTF-8 in it is replaced.
    Text(String),
    /// BLOB.
    Blob(Vec<u8>),
}

/// Rows of one database.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    /// Names, as the statement gives them.
    pub(super) columns: Vec<String>,
    /// As many cells in each as there are columns.
    pub(super) rows: Vec<Vec<Cell>>,
    /// There were more.
    pub(super) truncated: bool,
}

/// A copy, open.
#[derive(Debug)]
pub(super) struct Copy {
    connection: Connection,
}

impl Copy {
    /// Opens the file, which keeps its content while this is alive, also when its name goes to another. Blocks.
    pub(super) fn open(path: &Path) -> anyhow::Result<Copy> {
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(uri(path)?, flags)?;
        connection.pragma_update(None, "query_only", true)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        Ok(Copy { connection })
    }

    /// Ends a statement that runs, from elsewhere.
    pub(super) fn interrupt_handle(&self) -> InterruptHandle {
        self.connection.get_interrupt_handle()
    }

    /// Runs one statement. Blocks.
    pub(super) fn ask(&self, sql: &str, max_rows: usize) -> anyhow::Result<Answer> {
        let mut statement = match self.connection.prepare(sql) {
            Err(rusqlite::Error::MultipleStatement) => bail!("one statement at a time"),
            prepared => prepared?,
        };
        if !statement.readonly() {
            bail!("a past state can only be read, and this statement would write");
        }
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        if columns.is_empty() {
            bail!("this statement gives no rows: write a SELECT");
        }
        let (mut rows, mut bytes) = (statement.raw_query(), 0);
        let mut answer = Answer { columns, rows: Vec::new(), truncated: false };
        while let Some(row) = rows.next()? {
            if answer.rows.len() == max_rows {
                answer.truncated = true;
                break;
            }
            let mut cells = Vec::with_capacity(answer.columns.len());
            for column in 0..answer.columns.len() {
                let cell = cell(row.get_ref(column)?);
                bytes += size_of::<Cell>() + cell.heap_bytes();
                if bytes > MAX_BYTES {
                    bail!("the answer is larger than {} MiB: ask for less", MAX_BYTES >> 20);
                }
                cells.push(cell);
            }
            answer.rows.push(cells);
        }
        Ok(answer)
    }
}

impl Cell {
    fn heap_bytes(&self) -> usize {
        match self {
            Cell::Null | Cell::Integer(_) | Cell::Real(_) => 0,
            Cell::Text(text) => text.len(),
            Cell::Blob(bytes) => bytes.len(),
        }
    }
}

fn cell(value: ValueRef<'_>) -> Cell {
    match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(number) => Cell::Integer(number),
        ValueRef::Real(number) => Cell::Real(number),
        ValueRef::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Cell::Blob(bytes.to_vec()),
    }
}

/// The path as a URI that says that the file does not change.
fn uri(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().ok_or_else(|| anyhow!("the cache folder's name is not UTF-8"))?;
    let escaped = text.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    Ok(format!("file:{escaped}?immutable=1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("100%? #1.db");
        let db = Connection::open(&path).unwrap();
        db.pragma_update(None, "journal_mode", "wal").unwrap();
        db.execute_batch("CREATE TABLE t(a, b); INSERT INTO t VALUES (1, 'x'), (2.5, NULL), (x'00ff', 'ü')")
            .unwrap();
        (dir, path)
    }

    #[test]
    fn every_kind_of_value_comes_and_rows_are_counted() {
        let (_dir, path) = copy();
        let copy = Copy::open(&path).unwrap();
        let answer = copy.ask("SELECT a, b AS \"the b\" FROM t ORDER BY rowid;", 10).unwrap();
        assert_eq!(answer.columns, ["a", "the b"]);
        assert_eq!(
            answer.rows,
            [
                [Cell::Integer(1), Cell::Text("x".into())],
                [Cell::Real(2.5), Cell::Null],
                [Cell::Blob(vec![0, 255]), Cell::Text("ü".into())]
            ]
        );
        assert!(!answer.truncated);
        assert!(!copy.ask("SELECT * FROM t", 3).unwrap().truncated);
        let short = copy.ask("SELECT * FROM t", 2).unwrap();
        assert!(short.truncated && short.rows.len() == 2);
        let huge = copy.ask("SELECT zeroblob(100000000)", 1).unwrap_err().to_string();
        assert!(huge.contains("larger than"), "{huge}");
    }

    #[test]
    fn nothing_is_written_and_nothing_appears() {
        let (dir, path) = copy();
        let before = std::fs::read(&path).unwrap();
        let copy = Copy::open(&path).unwrap();
        let other = dir.path().join("other.db").display().to_string();
        for (sql, part) in [
            ("DELETE FROM t", "would write"),
            ("INSERT INTO t VALUES (1, 2) RETURNING a", "would write"),
            ("CREATE TEMP TABLE x(a)", "would write"),
            ("PRAGMA journal_mode = delete", "would write"),
            (&format!("VACUUM INTO '{other}'"), "would write"),
            (&format!("ATTACH '{other}' AS o"), "no rows"),
            ("PRAGMA query_only = off", "no rows"),
            ("BEGIN IMMEDIATE", "would write"),
            ("SELECT 1; DELETE FROM t", "one statement"),
            ("SELECT 1; nonsense", "nonsense"),
            ("-- nothing", "no rows"),
            ("SELECT * FROM missing", "missing"),
        ] {
            let refused = copy.ask(sql, 10).map(|answer| format!("{answer:?}"));
            assert!(refused.as_ref().is_err_and(|e| e.to_string().contains(part)), "{sql}: {refused:?}");
        }
        drop(copy);
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing lies beside it");
    }

    #[test]
    fn an_endless_statement_is_ended_from_elsewhere() {
        let (_dir, path) = copy();
        let copy = Copy::open(&path).unwrap();
        let (handle, (ended, end)) = (copy.interrupt_handle(), std::sync::mpsc::channel());
        let ender = std::thread::spawn(move || {
            while end.try_recv().is_err() {
                handle.interrupt();
                std::thread::yield_now();
            }
        });
        let endless =
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        let error = copy.ask(endless, 1).unwrap_err().to_string();
        ended.send(()).unwrap();
        ender.join().unwrap();
        assert!(error.contains("interrupted"), "{error}");
    }
}
