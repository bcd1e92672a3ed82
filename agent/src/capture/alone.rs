//! A database file that its task has let go of, and that nobody else may have open: what another file is put in place of.
//!
//! What a caller may rely on: [`in_the_way`] names whoever has the file open, as far as this system says; [`settle`] leaves a file without a log whose content is what was committed, or changes nothing; while a [`Locked`] lives,
//! SQLite elsewhere keeps out of the file.
//!
//! The caller sees to it that this process follows the file under no name, and has one [`Locked`] of it: closing the file here drops
//! SQLite's locks of it, and that one's.

use super::holders::Holders;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::{FlockOperation, fcntl_lock};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::Duration;
use walhub_common::{Checksum, PageSize, Pgno};

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;
/// Where the header of a database says how large pages are.
const PAGE_SIZE_AT: usize = 16;
/// Page size of 65536, as the header has it.
const LARGEST: u32 = 1;

/// Why a file is not settled.
#[derive(Debug, thiserror::Error)]
pub enum Unsettled {
    /// Somebody else has it open.
    #[error("{0} has it open")]
    Busy(String),
    /// There is no room to copy the log into it, or it must not be written.
    #[error("its log cannot be copied into it: {0}")]
    Disk(String),
    /// SQLite cannot read it.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// A lock on a whole database file.
#[derive(Debug)]
pub struct Locked {
    file: File,
}

/// Who has the file open, other than this process; `None` also when there is no file, or the process is hidden from this one.
pub fn in_the_way(path: &Path) -> Option<String> {
    walhub_common::restore::holder(path)
}

/// In words, who has a lock of the file.
fn busy(path: &Path) -> String {
    in_the_way(path).unwrap_or_else(|| Holders::of_file(path).to_string())
}

/// Keeps everybody out of the file; the words say who has a lock of it. Blocking, but does not wait.
pub fn lock(path: &Path) -> io::Result<Result<Locked, String>> {
    let file = File::options().read(true).write(true).open(path)?;
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Ok(Locked { file })),
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::AGAIN) => Ok(Err(busy(path))),
        Err(e) => Err(e.into()),
    }
}

/// Copies the log into the file, or rolls a broken transaction back, and takes the log away. Blocking.
pub fn settle(path: &Path) -> Result<(), Unsettled> {
    fold(path).map_err(|error| match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Unsettled::Busy(busy(path)),
        Some(ErrorCode::DiskFull | ErrorCode::ReadOnly) => Unsettled::Disk(error.to_string()),
        _ => Unsettled::Damaged(error.to_string()),
    })
}

fn fold(path: &Path) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags)?;
    database.busy_timeout(Duration::ZERO)?;
    // A log that cannot be copied, or belongs to what cannot be read, stays as it is.
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Before the first look: nobody else can have it open then, and no wal-index is made.
    database.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    database.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
    database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    database.close().map_err(|(_, error)| error)
}

impl Locked {
    /// The database checksum of the file as it is, without a log; `None` when its header is not that of a database.
    pub fn sum(&self) -> io::Result<Option<Checksum>> {
        (&self.file).rewind()?;
        let bytes = self.file.metadata()?.len();
        let mut file = BufReader::with_capacity(READ_BYTES, &self.file);
        let mut header = [0; 100];
        if bytes < header.len() as u64 {
            return Ok(None);
        }
        file.read_exact(&mut header)?;
        let size = match u16::from_be_bytes([header[PAGE_SIZE_AT], header[PAGE_SIZE_AT + 1]]).into() {
            LARGEST => 65536,
            size => size,
        };
        let Some(size) = PageSize::new(size) else { return Ok(None) };
        let Ok(pages) = u32::try_from(bytes / u64::from(size.get())) else { return Ok(None) };
        let (mut page, mut sum) = (vec![0; size.bytes()], Checksum::EMPTY);
        page[..header.len()].copy_from_slice(&header);
        let mut filled = header.len();
        for pgno in (1..=pages).filter_map(Pgno::new) {
            file.read_exact(&mut page[filled..])?;
            filled = 0;
            if pgno != size.lock_page() {
                sum = sum.toggle(Checksum::of_page(pgno, &page));
            }
        }
        Ok(Some(sum))
    }
}

/// The file that a path leads to: what lies beside it is SQLite's.
pub fn real(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn filled(path: &Path, page_size: u32) -> Connection {
        let db = Connection::open(path).unwrap();
        db.pragma_update(None, "page_size", page_size).unwrap();
        db.execute_batch(
            "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(300000)); PRAGMA wal_autocheckpoint=0; \
             INSERT INTO t VALUES (randomblob(50000))",
        )
        .unwrap();
        db
    }

    fn of_pages(path: &Path, size: usize) -> Checksum {
        let bytes = std::fs::read(path).unwrap();
        let pages = (1..).zip(bytes.chunks(size));
        pages.fold(Checksum::EMPTY, |sum, (n, page)| {
            sum.toggle(Checksum::of_page(Pgno::new(n).unwrap(), page))
        })
    }

    #[test]
    fn a_settled_file_has_no_log_and_everything_that_was_committed() {
        for page_size in [512, 4096, 65536] {
            let dir = tempfile::tempdir().unwrap();
            let (path, copy) = (dir.path().join("app.db"), dir.path().join("copy.db"));
            let db = filled(&path, page_size);
            // As a process leaves it that was killed.
            std::fs::copy(&path, &copy).unwrap();
            std::fs::copy(dir.path().join("app.db-wal"), dir.path().join("copy.db-wal")).unwrap();
            assert!(matches!(settle(&path), Err(Unsettled::Busy(_))), "this very process has it open");
            settle(&copy).unwrap();
            let sum = lock(&copy).unwrap().unwrap().sum().unwrap();
            assert_eq!(sum, Some(of_pages(&copy, page_size as usize)));
            assert!(!dir.path().join("copy.db-wal").exists());
            let rows: i64 = Connection::open(&copy)
                .unwrap()
                .query_row("SELECT sum(length(x)) FROM t", [], |row| row.get(0))
                .unwrap();
            assert_eq!(rows, 350_000);
            drop(db);
        }
    }

    #[test]
    fn what_is_no_database_is_left_as_it_is_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let (path, log) = (dir.path().join("app.db"), dir.path().join("app.db-wal"));
        assert!(in_the_way(&path).is_none() && lock(&path).is_err(), "nothing is there");
        std::fs::write(&path, vec![7; 9000]).unwrap();
        // A log whose pages do not begin with the first is no help.
        std::fs::write(&log, vec![9; 5000]).unwrap();
        assert!(matches!(settle(&path), Err(Unsettled::Damaged(_))));
        assert_eq!(std::fs::read(&path).unwrap(), vec![7; 9000]);
        assert_eq!(std::fs::read(&log).unwrap(), vec![9; 5000]);
        assert_eq!(lock(&path).unwrap().unwrap().sum().unwrap(), None);
    }

    #[test]
    fn a_locked_file_is_busy_elsewhere_and_summing_it_does_not_unlock_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        drop(filled(&path, 4096));
        let locked = lock(&path).unwrap().unwrap();
        locked.sum().unwrap();
        let asked = Command::new("sqlite3").arg("-batch").arg(&path).arg("SELECT count(*) FROM t").output();
        if let Ok(said) = asked {
            assert!(String::from_utf8_lossy(&said.stderr).contains("locked"), "{said:?}");
        }
        assert!(locked.sum().unwrap().is_some());
    }

    #[test]
    fn whoever_has_it_open_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        std::fs::write(&path, "x").unwrap();
        let open = File::open(&path).unwrap();
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::from(open)).spawn().unwrap();
        let found = in_the_way(&path);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, Some(format!("process {} (sleep)", child.id())));
    }
}
