//! ATTACH: from a path to an owned checkpoint lock, or a clear reason why not.

use super::error::{Absent, AttachError, Broken, CaptureError, SqliteError};
use super::header::Header;
use super::holders::Holders;
use super::image::{page_size_of, place};
use super::ledger::{Ledger, Point};
use super::maintain::Upkeep;
use super::read_ahead::ReadAhead;
use super::vfs::{Files, Unlocked};
use super::{Capture, Cursor, Options, Standing, Tracked};
use crate::disk::{self, Disk};
use crate::page_map::PageMap;
use crate::page_map::store::{Loaded, Store};
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use walhub_common::PageSize;
use walhub_common::wal::{FrameNo, WalPosition};

/// A lock that an application holds for a moment (recovery, last close) is waited for this long.
const BUSY_PATIENCE: Duration = Duration::from_millis(250);
/// A checkpoint of the application may run this long before the lock counts as taken.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_STEP: Duration = Duration::from_micros(300);

impl Capture {
    /// Takes the checkpoint lock of a database and finds out where its page map stands. Blocks for two seconds at most,
    /// plus the time to read the page map.
    pub fn attach(options: Options) -> Result<Capture, AttachError> {
        Self::attach_on(disk::real(), options)
    }

    /// As [`Capture::attach`], with the state on a disk of the caller's.
    pub fn attach_on(disk: Arc<dyn Disk>, options: Options) -> Result<Capture, AttachError> {
        let path = std::path::absolute(&options.path).map_err(|e| Absent::Io(e.to_string()))?;
        look(&path)?;
        let mut files = open(&path)?;
        lock(&mut files)?;
        let Loaded { store, map, discarded } =
            Store::open(disk, &options.state_dir).map_err(CaptureError::State)?;
        if let Some(reason) = discarded {
            tracing::warn!(path = %path.display(), reason, "the saved page map is unusable and was set aside");
        }
        let mut capture = Capture {
            options: Options { path, ..options },
            files,
            store,
            standing: Standing::Fresh,
            tracked: None,
            cursor: None,
            kept: VecDeque::new(),
            read_ahead: ReadAhead::default(),
            seen: None,
            upkeep: Upkeep::default(),
            yielded: false,
            pin: None,
        };
        if let Some(map) = map {
            capture.take_up(map)?;
        }
        Ok(capture)
    }

    /// ALIGN, as far as it needs nobody else: looks for the saved place in the log.
    fn take_up(&mut self, map: PageMap) -> Result<(), CaptureError> {
        let header = self.header()?;
        let anchor = *self.store.anchor();
        let Some(position) = anchor.position else {
            return Ok(());
        };
        self.cursor = match anchor.wal {
            Some(saved) => find(&self.files, &header, saved, map.page_size())?,
            None => None,
        };
        self.standing = if self.cursor.is_some() { Standing::Aligned } else { Standing::Gap };
        let ledger = Ledger::new(Point { position, wal: anchor.wal, commit: map.commit() });
        self.tracked = Some(Tracked { map, position, ledger, rolled: false });
        Ok(())
    }
}

/// A place of before, if the log still has it: the log only grows within a generation, so equal salts and an equal running
/// checksum at the saved frame mean that nothing before it was replaced.
pub(super) fn find(
    files: &Files,
    header: &Header,
    saved: WalPosition,
    page_size: PageSize,
) -> Result<Option<Cursor>, CaptureError> {
    if saved.salts != header.salts || saved.frame > header.last || header.page_size != Some(page_size) {
        return Ok(None);
    }
    match place(files, header, page_size, saved.frame) {
        Ok(found) if found == saved => Ok(Some(Cursor {
            wal: saved,
            anchored: true,
            page_size,
            big_endian: header.big_endian,
            backfilled: header.backfilled,
            commits: 0,
            counted: (saved.frame == header.last).then_some(header.changes),
        })),
        Ok(_) | Err(CaptureError::Broken(Broken::OtherGeneration | Broken::LogHeader(_))) => Ok(None),
        Err(e) => Err(e),
    }
}

/// What can be told without opening anything.
fn look(path: &Path) -> Result<(), Absent> {
    let facts = fs::metadata(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Absent::Missing,
        io::ErrorKind::PermissionDenied => Absent::Permission(format!("{}: {e}", path.display())),
        _ => Absent::Io(e.to_string()),
    })?;
    match (facts.is_file(), facts.len()) {
        (false, _) => Err(Absent::NotADatabase),
        (true, 0) => Err(Absent::Empty),
        (true, _) => Ok(()),
    }
}

fn open(path: &Path) -> Result<Files, Absent> {
    let unlocked = Unlocked::open(path).map_err(absent)?;
    let preview = unlocked.preview().map_err(absent)?;
    let header = &preview.header;
    if !preview.complete || !header.starts_with(b"SQLite format 3\0") || page_size_of(header).is_none() {
        return Err(Absent::NotADatabase);
    }
    // Read and write version: 1 is a rollback journal, 2 is WAL.
    if header[18] != 2 || header[19] != 2 {
        return Err(Absent::NotWal {
            journal_mode: "a rollback journal (DELETE, TRUNCATE, PERSIST or MEMORY)",
        });
    }
    if unlocked.is_readonly().map_err(absent)? {
        return Err(Absent::Permission(format!("{} cannot be opened for writing", path.display())));
    }
    let begun = Instant::now();
    loop {
        match unlocked.touch() {
            Ok(true) => return unlocked.attach().map_err(absent),
            Ok(false) => return Err(Absent::NotWal { journal_mode: "changing" }),
            Err(e) if e.is_busy() && begun.elapsed() < BUSY_PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(absent(e)),
        }
    }
}

/// Takes the checkpoint lock. While it waits, a read mark keeps the log from restarting under frames not yet captured.
pub(super) fn lock(files: &mut Files) -> Result<(), Absent> {
    let begun = Instant::now();
    let mut guarded = false;
    while !files.try_lock_checkpoint().map_err(absent)? {
        if begun.elapsed() >= LOCK_PATIENCE {
            return Err(Absent::TakenByAnotherAgent(Holders::of_checkpoint(files.path())));
        }
        if !guarded {
            match files.open_guard() {
                Err(e) if !e.is_busy() => return Err(absent(e)),
                opened => guarded = opened.is_ok(),
            }
        }
        std::thread::sleep(LOCK_STEP);
    }
    files.release();
    Ok(())
}

fn absent(error: SqliteError) -> Absent {
    if error.is_busy() {
        Absent::Exclusive
    } else if error.is_not_a_database() {
        Absent::NotADatabase
    } else if error.is_permission() {
        Absent::Permission(error.to_string())
    } else {
        Absent::Io(error.to_string())
    }
}

/// The place of a state that was read as an image.
pub(super) fn cursor_at(files: &Files, header: &Header, page_size: PageSize) -> Result<Cursor, CaptureError> {
    let mut cursor = Cursor {
        wal: WalPosition { salts: header.salts, frame: header.last, checksum: header.checksum },
        anchored: header.last > FrameNo::START,
        page_size,
        big_endian: header.big_endian,
        backfilled: header.backfilled,
        commits: 0,
        counted: Some(header.changes),
    };
    if !cursor.anchored {
        match place(files, header, page_size, FrameNo::START) {
            Ok(start) => (cursor.wal, cursor.anchored) = (start, true),
            Err(CaptureError::Broken(_)) => cursor.wal.checksum = [0, 0],
            Err(e) => return Err(e),
        }
    }
    Ok(cursor)
}
