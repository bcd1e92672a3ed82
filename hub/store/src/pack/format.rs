//! The bytes of a pack. Numbers are big-endian.
//!
//! ```text
//! index, per file, databases ascending, one file per database:
//!   agent length (1) | agent | name length (1) | name | level (1) | lineage (8) | min (8) | max (8) | database checksum
//!   after it, 0 when unknown (8) | time, Unix ms (8) | page size (4) | offset (4) | length (4) | BLAKE3 of the file (32)
//! footer:
//!   index offset (8) | index bytes (8) | files (4) | version (4) | BLAKE3 of index and the 24 bytes before this (32) |
//!   magic (8)
//! ```
//!
//! Everything is checked before it is believed: a reader may hand in any bytes, and gets a value that satisfies every
//! rule above or a [`PackError`]. What a reader must hold in memory is bounded by [`MAX_INDEX_BYTES`].

use crate::destinations::FileKey;
use bytes::Bytes;
use walhub_common::{AgentName, Checksum, DatabaseKey, DatabaseName, Level, PageSize, Txid, TxidRange};

/// First bytes of a pack, and its last.
pub const MAGIC: [u8; 8] = *b"WHPACK\r\n";
/// The only version.
const VERSION: u32 = 1;
/// Bytes of a footer.
pub const FOOTER_BYTES: usize = 64;
/// Bytes of one file in a pack; larger ones are put one by one.
pub const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes of a pack that a [`Writer`] makes: what object stores take in one request everywhere.
pub const MAX_PACK_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes of an index.
pub const MAX_INDEX_BYTES: u64 = MAX_PACK_BYTES;
/// Bytes of an index entry, without its two names.
const ENTRY_BYTES: usize = 87;
/// Bytes of the footer that its checksum covers.
const COVERED: usize = 24;

/// Why bytes are not a pack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Not the bytes of a pack at all, or its end is missing.
    #[error("it does not end as a pack does: it is truncated, or something else")]
    Magic,
    /// Made by a later walhub.
    #[error("it has version {0}, this walhub reads version {VERSION}")]
    Version(u32),
    /// The footer contradicts itself or the object.
    #[error("its footer is damaged: {0}")]
    Footer(&'static str),
    /// Flipped bits in index or footer.
    #[error("the checksum of its index does not match")]
    Checksum,
    /// A rule of the index is broken.
    #[error("entry {number} of its index is damaged: {reason}")]
    Entry {
        /// From 0.
        number: u32,
        /// What is wrong.
        reason: &'static str,
    },
}

/// One file in a pack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its name, were it put by itself.
    pub key: FileKey,
    /// Lineage of its database.
    pub lineage: u64,
    /// Database checksum after it.
    pub post: Option<Checksum>,
    /// Time of its newest transaction, Unix ms.
    pub time_ms: i64,
    /// Page size of its database.
    pub page_size: PageSize,
    /// Where it begins.
    pub offset: u32,
    /// Its bytes; never none, at most [`MAX_FILE_BYTES`].
    pub length: u32,
    /// BLAKE3 of its bytes.
    pub hash: [u8; 32],
}

/// What a writer is told of a file.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its name.
    pub key: FileKey,
    /// Lineage of its database.
    pub lineage: u64,
    /// Database checksum after it.
    pub post: Option<Checksum>,
    /// Time of its newest transaction, Unix ms.
    pub time_ms: i64,
    /// Page size of its database.
    pub page_size: PageSize,
}

/// A finished pack.
#[derive(Clone, Debug)]
pub struct Pack {
    /// Its bytes.
    pub bytes: Bytes,
    /// Its files.
    pub entries: Vec<Entry>,
}

/// The file does not fit any more: put what there is, and begin another pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// Makes a pack of files that are given in the order of their databases.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    index: Vec<u8>,
    entries: Vec<Entry>,
}

impl Default for Writer {
    fn default() -> Self {
        Self { bytes: MAGIC.to_vec(), index: Vec::new(), entries: Vec::new() }
    }
}

impl Writer {
    /// Adds a file; its database must come after the last one's. [`Full`] leaves the writer as it was; an empty writer
    /// takes any file of at most [`MAX_FILE_BYTES`].
    pub fn push(&mut self, facts: Facts, file: &[u8]) -> Result<(), Full> {
        assert!(
            self.entries.last().is_none_or(|last| last.key.database < facts.key.database),
            "BUG: files of a pack are given in the order of their databases"
        );
        assert!(!file.is_empty() && file.len() as u64 <= MAX_FILE_BYTES, "BUG: no file for a pack");
        let names = facts.key.database.agent.as_str().len() + facts.key.database.name.as_str().len();
        let after = self.bytes.len() + file.len() + self.index.len() + ENTRY_BYTES + names + FOOTER_BYTES;
        if after as u64 > MAX_PACK_BYTES {
            return Err(Full);
        }
        let Facts { key, lineage, post, time_ms, page_size } = facts;
        let (offset, length) = (self.bytes.len() as u32, file.len() as u32);
        let hash = *blake3::hash(file).as_bytes();
        let entry = Entry { key, lineage, post, time_ms, page_size, offset, length, hash };
        encode_entry(&entry, &mut self.index);
        self.bytes.extend_from_slice(file);
        self.entries.push(entry);
        Ok(())
    }

    /// Files so far.
    pub fn files(&self) -> usize {
        self.entries.len()
    }

    /// The pack.
    pub fn finish(mut self) -> Pack {
        let footer = encode_footer(self.bytes.len() as u64, self.entries.len() as u32, &self.index);
        self.bytes.extend_from_slice(&self.index);
        self.bytes.extend_from_slice(&footer);
        Pack { bytes: Bytes::from(self.bytes), entries: self.entries }
    }
}

/// The footer of any index: tests break its rules with it.
pub(crate) fn encode_footer(index_offset: u64, files: u32, index: &[u8]) -> [u8; FOOTER_BYTES] {
    let mut footer = [0; FOOTER_BYTES];
    footer[0..8].copy_from_slice(&index_offset.to_be_bytes());
    footer[8..16].copy_from_slice(&(index.len() as u64).to_be_bytes());
    footer[16..20].copy_from_slice(&files.to_be_bytes());
    footer[20..24].copy_from_slice(&VERSION.to_be_bytes());
    let hash = checksum(index, &footer[..COVERED]);
    footer[24..56].copy_from_slice(&hash);
    footer[56..64].copy_from_slice(&MAGIC);
    footer
}

fn checksum(index: &[u8], covered: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(index).update(covered);
    *hasher.finalize().as_bytes()
}

fn encode_entry(entry: &Entry, out: &mut Vec<u8>) {
    for name in [entry.key.database.agent.as_str(), entry.key.database.name.as_str()] {
        out.push(name.len() as u8);
        out.extend_from_slice(name.as_bytes());
    }
    out.push(entry.key.level.get());
    out.extend_from_slice(&entry.lineage.to_be_bytes());
    out.extend_from_slice(&entry.key.range.min().get().to_be_bytes());
    out.extend_from_slice(&entry.key.range.max().get().to_be_bytes());
    out.extend_from_slice(&entry.post.map_or(0, Checksum::get).to_be_bytes());
    out.extend_from_slice(&entry.time_ms.to_be_bytes());
    out.extend_from_slice(&entry.page_size.get().to_be_bytes());
    out.extend_from_slice(&entry.offset.to_be_bytes());
    out.extend_from_slice(&entry.length.to_be_bytes());
    out.extend_from_slice(&entry.hash);
}

/// The end of a pack: where its index lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Footer {
    /// Where the index begins, which is where the files end.
    pub index_offset: u64,
    /// Its bytes.
    pub index_bytes: u64,
    /// Its entries.
    pub files: u32,
    covered: [u8; COVERED],
    hash: [u8; 32],
}

impl Footer {
    /// From the last bytes of a pack; more than a footer is fine.
    pub fn parse(end: &[u8]) -> Result<Footer, PackError> {
        let footer = end.last_chunk::<FOOTER_BYTES>().ok_or(PackError::Magic)?;
        let mut fields = Fields(footer);
        let mut parse = || {
            let (index_offset, index_bytes) = (fields.u64()?, fields.u64()?);
            let (files, version, hash, magic) =
                (fields.u32()?, fields.u32()?, fields.array()?, fields.array()?);
            let covered = *footer.first_chunk()?;
            Some((Footer { index_offset, index_bytes, files, covered, hash }, version, magic))
        };
        let (footer, version, magic): (Footer, u32, [u8; 8]) = parse().ok_or(PackError::Magic)?;
        if magic != MAGIC {
            return Err(PackError::Magic);
        }
        if version != VERSION {
            return Err(PackError::Version(version));
        }
        if footer.index_bytes > MAX_INDEX_BYTES {
            return Err(PackError::Footer("its index is too large"));
        }
        if footer.index_offset < MAGIC.len() as u64 || footer.index_offset > MAX_PACK_BYTES {
            return Err(PackError::Footer("its index begins outside of it"));
        }
        if u64::from(footer.files) * ENTRY_BYTES as u64 > footer.index_bytes {
            return Err(PackError::Footer("its index is too small for its entries"));
        }
        Ok(footer)
    }

    /// Bytes of the whole pack.
    pub fn pack_bytes(&self) -> u64 {
        self.index_offset + self.index_bytes + FOOTER_BYTES as u64
    }
}

/// The entries of an index, whose bytes lie where the footer says.
pub fn parse_index(footer: &Footer, index: &[u8]) -> Result<Vec<Entry>, PackError> {
    if index.len() as u64 != footer.index_bytes || checksum(index, &footer.covered) != footer.hash {
        return Err(PackError::Checksum);
    }
    let mut fields = Fields(index);
    let mut entries: Vec<Entry> = Vec::with_capacity(footer.files as usize);
    let mut end = MAGIC.len() as u64;
    for number in 0..footer.files {
        let fault = |reason| PackError::Entry { number, reason };
        let entry = parse_entry(&mut fields).map_err(fault)?;
        if entries.last().is_some_and(|last| last.key.database >= entry.key.database) {
            return Err(fault("databases must ascend"));
        }
        if u64::from(entry.offset) != end {
            return Err(fault("it does not begin where the file before it ends"));
        }
        end += u64::from(entry.length);
        entries.push(entry);
    }
    if end != footer.index_offset {
        return Err(PackError::Footer("its files do not end where its index begins"));
    }
    if !fields.0.is_empty() {
        return Err(PackError::Footer("its index is longer than its entries"));
    }
    Ok(entries)
}

fn parse_entry(fields: &mut Fields<'_>) -> Result<Entry, &'static str> {
    let short = "it ends too early";
    let agent =
        AgentName::new(fields.text().ok_or("a name is not readable")?).map_err(|_| "bad agent name")?;
    let name =
        DatabaseName::new(fields.text().ok_or("a name is not readable")?).map_err(|_| "bad database name")?;
    let level = fields.u8().and_then(Level::new).ok_or("no such level")?;
    let lineage = fields.u64().ok_or(short)?;
    let (min, max) = (fields.u64().ok_or(short)?, fields.u64().ok_or(short)?);
    let range = Txid::new(min).zip(Txid::new(max)).and_then(|(min, max)| TxidRange::new(min, max));
    let range = range.ok_or("its transactions are no range")?;
    let post = match fields.u64().ok_or(short)? {
        0 => None,
        value => Some(Checksum::new(value).ok_or("impossible database checksum")?),
    };
    let time_ms = fields.u64().ok_or(short)? as i64;
    let page_size = fields.u32().and_then(PageSize::new).ok_or("impossible page size")?;
    let (offset, length) = (fields.u32().ok_or(short)?, fields.u32().ok_or(short)?);
    if length == 0 || u64::from(length) > MAX_FILE_BYTES {
        return Err("impossible length");
    }
    let hash = fields.array().ok_or(short)?;
    let key = FileKey { database: DatabaseKey::new(agent, name), level, range };
    Ok(Entry { key, lineage, post, time_ms, page_size, offset, length, hash })
}

/// Takes fields off the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.u8()?;
        std::str::from_utf8(self.take(usize::from(length))?).ok()
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
