//! The judge's eye: a process of its own that reads the live database in one read transaction.

use std::path::{Path, PathBuf};
use std::process::Command;
use walhub_tests::oracle;

/// What the live database is at a quiet point.
pub(crate) struct Live {
    pub(crate) image: Vec<u8>,
    /// `PRAGMA integrity_check`, or why it could not run.
    pub(crate) integrity: String,
    pub(crate) rows: String,
}

/// `walhub-torture judge DB OUT`: brings the journal mode back if a writer died between two of them, writes the image to
/// OUT, and says what SQLite thinks of it.
pub(crate) fn main(database: &Path, out: &Path) {
    let mut db = oracle::observer(database);
    let mode: String = db.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).expect("journal mode");
    assert_eq!(mode, "wal", "the database did not go back to WAL");
    db.execute_batch("BEGIN").expect("read transaction");
    let (integrity, rows) = (ask(&db, "PRAGMA integrity_check"), ask(&db, ROWS));
    std::fs::write(out, &*db.serialize("main").expect("serialize")).expect("write the image");
    db.execute_batch("COMMIT").expect("end of the read transaction");
    println!("{}\n{rows}", integrity.replace('\n', "; "));
}

const ROWS: &str = "SELECT count(*) || ' rows, ' || coalesce(sum(length(a)), 0) || ' bytes' FROM t";

fn ask(db: &rusqlite::Connection, sql: &str) -> String {
    let answer = db.query_row(sql, [], |row| row.get::<_, String>(0));
    answer.unwrap_or_else(|error| error.to_string())
}

/// Asks a judge.
pub(crate) fn live(database: &Path, scratch: &Path) -> Result<Live, String> {
    let out: PathBuf = scratch.join("live.image");
    let mut judge = Command::new(std::env::current_exe().expect("own path"));
    let judge = judge.arg("judge").arg(database).arg(&out).output().expect("start a judge");
    if !judge.status.success() {
        return Err(format!("the live database cannot be read: {}", String::from_utf8_lossy(&judge.stderr)));
    }
    let text = String::from_utf8_lossy(&judge.stdout).into_owned();
    let mut lines = text.lines();
    let mut line = || lines.next().unwrap_or_default().to_owned();
    let image = std::fs::read(&out).map_err(|error| error.to_string())?;
    Ok(Live { image, integrity: line(), rows: line() })
}

/// What SQLite thinks of a copy.
pub(crate) fn copy(image: &[u8], scratch: &Path) -> (String, String) {
    let path = scratch.join("copy.db");
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    std::fs::write(&path, image).expect("write a copy");
    let db = oracle::observer(&path);
    (ask(&db, "PRAGMA integrity_check"), ask(&db, ROWS))
}
