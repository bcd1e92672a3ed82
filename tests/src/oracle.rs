//! The judge: reads the live image through SQLite in one read transaction and compares it with what came back.

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Duration;
use walhub_common::{Checksum, PageSize, Pgno};

/// A whole database image.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    page_size: PageSize,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} pages of {}, {})", self.pages(), self.page_size.get(), self.checksum())
    }
}

impl Image {
    /// The live database, WAL included, as one read transaction sees it. Neither checkpoints nor deletes the WAL.
    pub fn live(path: &Path) -> Image {
        let mut connection = observer(path);
        connection.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;").expect("read transaction");
        let image = Image::new(connection.serialize("main").expect("serialize").to_vec());
        connection.execute_batch("COMMIT").expect("end of the read transaction");
        image
    }

    /// A restored file: it must be complete by itself, without a WAL beside it.
    #[track_caller]
    pub fn restored(path: &Path) -> Image {
        for suffix in ["-wal", "-shm", "-journal"] {
            let mut beside = path.as_os_str().to_owned();
            beside.push(suffix);
            assert!(!Path::new(&beside).exists(), "a restore left {}", Path::new(&beside).display());
        }
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Image::new(bytes)
    }

    fn new(bytes: Vec<u8>) -> Image {
        assert!(bytes.len() >= 512, "{} bytes are no database", bytes.len());
        let stored = u32::from(u16::from_be_bytes([bytes[16], bytes[17]]));
        let page_size = PageSize::new(if stored == 1 { 65536 } else { stored }).expect("page size in page 1");
        assert_eq!(bytes.len() % page_size.bytes(), 0, "not a whole number of pages");
        Image { page_size, bytes }
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.bytes.len() / self.page_size.bytes()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a database has a page.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn page(&self, index: usize) -> &[u8] {
        &self.bytes[index * self.page_size.bytes()..][..self.page_size.bytes()]
    }

    /// The database checksum: XOR over all pages but the lock page.
    pub fn checksum(&self) -> Checksum {
        let lock = self.page_size.lock_page().index();
        let sums = self.page_checksums().into_iter().enumerate().filter(|(index, _)| *index != lock);
        sums.fold(Checksum::EMPTY, |sum, (_, page)| sum.toggle(page))
    }

    /// The checksum of each page.
    pub fn page_checksums(&self) -> Vec<Checksum> {
        let page = |index| Checksum::of_page(Pgno::new(index as u32 + 1).expect("from 1"), self.page(index));
        (0..self.pages()).map(page).collect()
    }

    /// Page numbers that differ, the lock page aside; a page that one side lacks differs.
    pub fn differing(&self, other: &Image) -> Vec<u32> {
        if self.page_size != other.page_size {
            return (1..=self.pages().max(other.pages()) as u32).collect();
        }
        let lock = self.page_size.lock_page().index();
        (0..self.pages().max(other.pages()))
            .filter(|&index| index != lock)
            .filter(|&index| {
                index >= self.pages() || index >= other.pages() || self.page(index) != other.page(index)
            })
            .map(|index| index as u32 + 1)
            .collect()
    }

    /// Panics unless every page is equal.
    #[track_caller]
    pub fn assert_same(&self, other: &Image, what: &str) {
        let differing = self.differing(other);
        assert!(
            differing.is_empty(),
            "{what}: {} of {} pages differ (source {self:?}, got {other:?}): {:?}",
            differing.len(),
            self.pages(),
            &differing[..differing.len().min(20)]
        );
    }
}

/// A connection that reads a live database without leaving a trace: no checkpoint on close.
pub fn observer(path: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    connection.busy_timeout(Duration::from_secs(60)).expect("busy timeout");
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .expect("no checkpoint on close");
    connection
}

/// `PRAGMA integrity_check` of a copy; "ok" or what it found.
pub fn integrity(path: &Path) -> String {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).expect("open");
    let found = connection.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
    found.unwrap_or_else(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn sees_frames_that_lie_only_in_the_wal_and_finds_a_changed_page() {
        let scratch = Scratch::new("oracle");
        let path = scratch.join("live.db");
        let app = Connection::open(&path).unwrap();
        app.pragma_update(None, "journal_mode", "wal").unwrap();
        app.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        app.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(9000));").unwrap();
        let before = Image::live(&path);
        assert!(before.pages() >= 4);
        app.execute_batch("UPDATE t SET x = randomblob(9000)").unwrap();
        let after = Image::live(&path);
        assert!(!before.differing(&after).is_empty());
        assert_ne!(before.checksum(), after.checksum());
        assert_eq!(after.differing(&Image::live(&path)), Vec::<u32>::new());

        let copy = scratch.join("copy.db");
        std::fs::write(&copy, &after.bytes).unwrap();
        after.assert_same(&Image::restored(&copy), "a copy");
        let mut shorter = after.clone();
        shorter.bytes.truncate((after.pages() - 1) * after.page_size.bytes());
        assert_eq!(after.differing(&shorter), vec![after.pages() as u32]);
    }
}
