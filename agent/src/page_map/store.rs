//! The page map on disk: a `base` with every entry and an append-only `journal` with what changed since.
//!
//! ```text
//! base    = "WHPMbas1" | sequence u64 | anchor | entry × commit | crc u64
//! journal = "WHPMjrn1" | sequence u64 | record …
//! record  = anchor | count u32 | (page u32, entry) × count | crc u64        all integers little-endian
//! entry   = checksum u64, txid u64
//! anchor  = lineage u64 | txid u64 | database checksum u64 | page size u32 | commit u32
//!           | has wal u32 | salts u32 × 2 | frame u32 | frame checksum u32 × 2
//! ```
//!
//! Invariants
//! - What [`Store::open`] returns is exactly what one `save` was called with: a record counts when its CRC matches and
//!   every record before it counts, and the database checksum of the anchor must be that of the entries.
//! - A save is on disk when it returns. Killed in the middle, the save before it counts.
//! - A journal belongs to the base with its sequence number; any other is what a crash left between the two steps of a
//!   rewrite, and is already contained in the base.
//! - The journal is bounded by a few times its base: it asks for a rewrite when it is larger, and insists later.
//!
//! A state that does not verify is not used at all: the database is then treated as one that was never seen.

mod codec;

use super::ages::Dated;
use super::{Entry, Loading, PageMap, Room};
use crate::disk::Disk;
use codec::{
    ANCHOR_BYTES, ENTRY_BYTES, Summed, SummedReader, decode_anchor, decode_entry, encode_anchor, encode_entry,
};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use walhub_common::wal::WalPosition;
use walhub_common::{PageSize, Pos};

const BASE_MAGIC: &[u8; 8] = b"WHPMbas1";
const JOURNAL_MAGIC: &[u8; 8] = b"WHPMjrn1";
const CHANGE_BYTES: usize = 4 + ENTRY_BYTES;
/// A journal shorter than this is never worth a rewrite.
const SMALL_JOURNAL: u64 = 64 * 1024;

/// A state file that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("state file {}: {source}", path.display())]
pub struct StateError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// What a saved page map is a map of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Anchor {
    /// Identity of the history; 0 while the hub has not given one.
    pub lineage: u64,
    /// Transaction and database checksum.
    pub position: Option<Pos>,
    /// Where in the WAL that is; `None` when no place in a WAL is known to be it.
    pub wal: Option<WalPosition>,
}

/// The files of one database.
#[derive(Debug)]
pub struct Store {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    sequence: u64,
    base_bytes: u64,
    journal_bytes: u64,
    anchor: Anchor,
    /// Page size and pages of the saved map; `None` while there is none.
    shape: Option<(PageSize, u32)>,
}

/// What was found.
#[derive(Debug)]
pub struct Loaded {
    /// The files, ready to be written.
    pub store: Store,
    /// The page map, if one was ever saved.
    pub map: Option<PageMap>,
    /// What was there and could not be used.
    pub discarded: Option<String>,
}

impl Store {
    /// Opens the folder, creating it if needed, and reads what was saved last.
    pub fn open(disk: Arc<dyn Disk>, folder: &Path) -> Result<Loaded, StateError> {
        let fault = |source| StateError { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(fault)?;
        let mut store = Store {
            disk,
            folder: folder.to_owned(),
            sequence: 0,
            base_bytes: 0,
            journal_bytes: 0,
            anchor: Anchor::default(),
            shape: None,
        };
        match store.load() {
            Ok(map) => Ok(Loaded { store, map, discarded: None }),
            Err(Unusable::Io(error)) => Err(error),
            Err(Unusable::Damaged(what)) => {
                // Its number might be garbled as well, so no journal may be left that a new base could take for its own.
                store.remove_journal()?;
                let fresh = Store {
                    base_bytes: 0,
                    journal_bytes: 0,
                    anchor: Anchor::default(),
                    shape: None,
                    ..store
                };
                Ok(Loaded { store: fresh, map: None, discarded: Some(what) })
            }
        }
    }

    /// What the last save was anchored to.
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    /// True when the next save should be a [`Store::rewrite`].
    pub fn wants_rewrite(&self) -> bool {
        self.base_bytes == 0 || self.journal_bytes > self.base_bytes.max(SMALL_JOURNAL)
    }

    /// True when the next save must be one, whatever it costs.
    pub fn must_rewrite(&self) -> bool {
        self.journal_bytes > 4 * self.base_bytes.max(SMALL_JOURNAL)
    }

    /// Saves another anchor for the map that is saved already.
    pub fn reanchor(&mut self, anchor: Anchor) -> Result<(), StateError> {
        if self.base_bytes == 0 {
            return self.rewrite(anchor, None);
        }
        let (page_size, commit) = self.shape.unzip();
        self.append_any(anchor, page_size, commit.unwrap_or(0), &[])
    }

    /// Appends what changed since the last save: entries ascending by page, none above the commit size.
    pub fn append(
        &mut self,
        anchor: Anchor,
        page_size: PageSize,
        commit: u32,
        changes: &[(u32, Entry)],
    ) -> Result<(), StateError> {
        self.append_any(anchor, Some(page_size), commit, changes)
    }

    fn append_any(
        &mut self,
        anchor: Anchor,
        page_size: Option<PageSize>,
        commit: u32,
        changes: &[(u32, Entry)],
    ) -> Result<(), StateError> {
        assert!(self.base_bytes > 0, "BUG: a journal without a base");
        let path = self.journal_path();
        let appended = self.append_record(&path, &anchor, page_size, commit, changes);
        self.journal_bytes = appended.map_err(|source| StateError { path, source })?;
        self.anchor = anchor;
        self.shape = page_size.map(|size| (size, commit));
        Ok(())
    }

    /// Writes everything anew. `None`: there is no page map yet, only an anchor.
    pub fn rewrite(&mut self, anchor: Anchor, map: Option<&PageMap>) -> Result<(), StateError> {
        let path = self.base_path();
        let written = self.write_base(&path, &anchor, map);
        self.base_bytes = written.map_err(|source| StateError { path, source })?;
        self.sequence += 1;
        self.journal_bytes = 0;
        self.anchor = anchor;
        self.shape = map.map(|map| (map.page_size(), map.commit()));
        Ok(())
    }

    fn base_path(&self) -> PathBuf {
        self.folder.join("base")
    }

    fn journal_path(&self) -> PathBuf {
        self.folder.join("journal")
    }

    fn remove_journal(&self) -> Result<(), StateError> {
        let path = self.journal_path();
        self.disk.remove(&path).map_err(|source| StateError { path, source })
    }

    fn write_base(&self, path: &Path, anchor: &Anchor, map: Option<&PageMap>) -> io::Result<u64> {
        let temporary = path.with_extension("tmp");
        let mut out = Summed::new(BufWriter::new(self.disk.create(&temporary)?));
        out.put(BASE_MAGIC)?;
        out.put(&(self.sequence + 1).to_le_bytes())?;
        out.put(&encode_anchor(anchor, map.map(PageMap::page_size), map.map_or(0, PageMap::commit)))?;
        for entry in map.into_iter().flat_map(PageMap::entries) {
            out.put(&encode_entry(&entry?))?;
        }
        let (out, bytes) = out.finish()?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync()?;
        self.disk.rename(&temporary, path)?;
        self.disk.sync_folder(&self.folder)?;
        Ok(bytes)
    }

    fn append_record(
        &self,
        path: &Path,
        anchor: &Anchor,
        page_size: Option<PageSize>,
        commit: u32,
        changes: &[(u32, Entry)],
    ) -> io::Result<u64> {
        let fresh = self.journal_bytes == 0;
        // Cut to what counts: a failed save may have left something behind.
        let file =
            if fresh { self.disk.create(path)? } else { self.disk.append(path, self.journal_bytes)? };
        let mut out = BufWriter::new(file);
        let mut bytes = self.journal_bytes;
        if fresh {
            out.write_all(JOURNAL_MAGIC)?;
            out.write_all(&self.sequence.to_le_bytes())?;
            bytes = 16;
        }
        let mut out = Summed::new(out);
        out.put(&encode_anchor(anchor, page_size, commit))?;
        out.put(&u32::try_from(changes.len()).expect("BUG: more changes than pages").to_le_bytes())?;
        for (pgno, entry) in changes {
            out.put(&pgno.to_le_bytes())?;
            out.put(&encode_entry(entry))?;
        }
        let (out, record) = out.finish()?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync()?;
        if fresh {
            self.disk.sync_folder(&self.folder)?;
        }
        Ok(bytes + record)
    }

    fn load(&mut self) -> Result<Option<PageMap>, Unusable> {
        let Some(mut state) = self.load_base()? else {
            return Ok(None);
        };
        self.replay_journal(&mut state)?;
        self.anchor = state.anchor;
        let Some(mut map) = state.map else {
            return Ok(None);
        };
        map.add_up().map_err(|source| Unusable::from_io(&self.folder, source))?;
        self.shape = Some((map.page_size(), map.commit()));
        if self.anchor.position.map(|p| p.checksum) != Some(map.checksum()) {
            return Err(Unusable::Damaged("the entries do not add up to the database checksum".into()));
        }
        Ok(Some(map))
    }

    fn load_base(&mut self) -> Result<Option<State>, Unusable> {
        let path = self.base_path();
        let io = |source| Unusable::from_io(&path, source);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io(e)),
        };
        let length = file.metadata().map_err(io)?.len();
        let mut input = SummedReader::new(BufReader::new(file), length);
        let magic: [u8; 8] = input.take().map_err(io)?;
        self.sequence = u64::from_le_bytes(input.take().map_err(io)?);
        if &magic != BASE_MAGIC {
            return Err(Unusable::Damaged("base: not a page map".into()));
        }
        let (anchor, page_size, commit) = decode_anchor(&input.take().map_err(io)?);
        if input.left != u64::from(commit) * ENTRY_BYTES as u64 + 8 {
            return Err(Unusable::Damaged("base: its length does not fit its header".into()));
        }
        let mut dated = Dated::default();
        for _ in 0..commit {
            dated.push(decode_entry(&input.take().map_err(io)?).txid());
        }
        if !input.verified().map_err(io)? {
            return Err(Unusable::Damaged("base: checksum mismatch".into()));
        }
        self.base_bytes = length;
        let map = match page_size {
            Some(page_size) => Some(self.entries(page_size, commit, dated).map_err(io)?),
            None => None,
        };
        Ok(Some(State { anchor, map }))
    }

    /// The entries of a base that was verified.
    fn entries(&self, page_size: PageSize, commit: u32, dated: Dated) -> io::Result<PageMap> {
        let mut input = BufReader::new(File::open(self.base_path())?);
        input.seek_relative((8 + 8 + ANCHOR_BYTES) as i64)?;
        let mut map = Loading::new(page_size, dated.finish(), Room::beside(&self.folder));
        let mut entry = [0; ENTRY_BYTES];
        for _ in 0..commit {
            input.read_exact(&mut entry)?;
            map.push(decode_entry(&entry));
        }
        Ok(map.finish())
    }

    fn replay_journal(&mut self, state: &mut State) -> Result<(), Unusable> {
        let path = self.journal_path();
        let io = |source| Unusable::from_io(&path, source);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(io(e)),
        };
        let mut left = file.metadata().map_err(io)?.len();
        let mut input = BufReader::new(file);
        let mut head = [0; 16];
        if left < 16 {
            return Ok(());
        }
        input.read_exact(&mut head).map_err(io)?;
        if &head[..8] != JOURNAL_MAGIC || head[8..] != self.sequence.to_le_bytes() {
            return Ok(());
        }
        left -= 16;
        self.journal_bytes = 16;
        while let Some(mut record) = read_record(&mut input, left).map_err(io)? {
            if !state.apply(&mut record) {
                return Err(Unusable::Damaged("journal: a record that does not fit its database".into()));
            }
            left -= record.bytes;
            self.journal_bytes += record.bytes;
        }
        Ok(())
    }
}

/// The state while it is being read.
struct State {
    anchor: Anchor,
    map: Option<PageMap>,
}

impl State {
    fn apply(&mut self, record: &mut Record) -> bool {
        self.anchor = record.anchor;
        match (&mut self.map, record.page_size) {
            (Some(map), Some(page_size)) => {
                map.page_size() == page_size && map.replay(record.commit, &mut record.changes).is_some()
            }
            (None, None) => true,
            _ => false,
        }
    }
}

struct Record {
    anchor: Anchor,
    page_size: Option<PageSize>,
    commit: u32,
    changes: Vec<(u32, Entry)>,
    bytes: u64,
}

/// The next record, or `None` at the end: clean, torn, or a record that was never finished.
fn read_record(input: &mut impl Read, left: u64) -> io::Result<Option<Record>> {
    let head = ANCHOR_BYTES as u64 + 4;
    if left < head + 8 {
        return Ok(None);
    }
    let mut input = SummedReader::new(input, left);
    let (anchor, page_size, commit) = decode_anchor(&input.take()?);
    let count = u32::from_le_bytes(input.take()?);
    let bytes = head + u64::from(count) * CHANGE_BYTES as u64 + 8;
    if bytes > left {
        return Ok(None);
    }
    let mut changes = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let pgno = u32::from_le_bytes(input.take()?);
        changes.push((pgno, decode_entry(&input.take()?)));
    }
    Ok(input.verified()?.then_some(Record { anchor, page_size, commit, changes, bytes }))
}

enum Unusable {
    Io(StateError),
    Damaged(String),
}

impl Unusable {
    fn from_io(path: &Path, source: io::Error) -> Unusable {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Unusable::Damaged(format!("{}: cut off", path.display())),
            _ => Unusable::Io(StateError { path: path.to_owned(), source }),
        }
    }
}

#[cfg(test)]
mod tests;
