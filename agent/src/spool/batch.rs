//! One file of a spool: segments in TXID order, written once, never changed.
//!
//! ```text
//! <first TXID>-<last TXID>.spool = chunk … | footer                   all integers little-endian
//! chunk  = length u32, highest bit set in a segment's last chunk | bytes of the segment's LTX file
//! footer = "WHSPOOL1" | first u64 | last u64 | checksum before u64 | checksum after u64 | segments u64 | crc u64
//! ```
//!
//! Invariants: a file appears whole and synced under its name, or not at all; what is read from one is checked by whoever
//! takes it (LTX files carry their own checksum, and the hub verifies every one).

use super::room::Room;
use crate::capture::{SegmentMeta, Sink};
use crate::disk::{Disk, DiskFile};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use walhub_common::checksum::FileDigest;
use walhub_common::limits::MAX_CHUNK_BYTES;
use walhub_common::{Checksum, Pos, Txid, TxidRange};

const MAGIC: &[u8; 8] = b"WHSPOOL1";
const FOOTER_BYTES: usize = 7 * 8;
const LAST: u32 = 1 << 31;
/// Ending of the file names.
pub(super) const SUFFIX: &str = ".spool";
/// Name of the file that is being written.
const UNFINISHED: &str = "unfinished.tmp";

/// What a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Batch {
    /// Transactions.
    pub(super) range: TxidRange,
    /// Database checksum before them; `None` when they start the history.
    pub(super) pre: Option<Checksum>,
    /// Database checksum after them.
    pub(super) post: Checksum,
    /// Segments, which are as many restore points.
    pub(super) segments: u64,
    /// Size of the file.
    pub(super) bytes: u64,
}

impl Batch {
    /// The position after it.
    pub(super) fn end(&self) -> Pos {
        Pos { txid: self.range.max(), checksum: self.post }
    }

    /// The position before it.
    pub(super) fn start(&self) -> Option<Pos> {
        Some(Pos { txid: Txid::new(self.range.min().get() - 1)?, checksum: self.pre? })
    }

    /// Its file name.
    pub(super) fn name(&self) -> String {
        format!("{:016x}-{:016x}{SUFFIX}", self.range.min().get(), self.range.max().get())
    }

    /// Reads the footer of a file.
    pub(super) fn of(path: &Path) -> io::Result<Batch> {
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let start = bytes.checked_sub(FOOTER_BYTES as u64).ok_or_else(|| damaged("it is cut off"))?;
        file.seek(SeekFrom::Start(start))?;
        let mut footer = [0; FOOTER_BYTES];
        file.read_exact(&mut footer)?;
        Self::decode(&footer, bytes).ok_or_else(|| damaged("its footer is not one"))
    }

    fn decode(footer: &[u8; FOOTER_BYTES], bytes: u64) -> Option<Batch> {
        let (content, crc) = footer.split_at(FOOTER_BYTES - 8);
        let long = |at: usize| Some(u64::from_le_bytes(content.get(at..at + 8)?.try_into().ok()?));
        if content.get(..8)? != MAGIC || crc != digest(content).to_le_bytes() {
            return None;
        }
        let range = TxidRange::new(Txid::new(long(8)?)?, Txid::new(long(16)?)?)?;
        let pre = match long(24)? {
            0 => None,
            pre => Some(Checksum::new(pre)?),
        };
        Some(Batch { range, pre, post: Checksum::new(long(32)?)?, segments: long(40)?, bytes })
    }

    fn footer(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let pre = self.pre.map_or(0, Checksum::get);
        for long in [self.range.min().get(), self.range.max().get(), pre, self.post.get(), self.segments] {
            out.extend_from_slice(&long.to_le_bytes());
        }
        let crc = digest(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut digest = FileDigest::default();
    digest.update(bytes);
    digest.finish().get()
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Takes segments into a new file. Dropped without [`Writer::seal`], it leaves nothing.
pub(super) struct Writer {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    room: Arc<Room>,
    out: Option<BufWriter<Box<dyn DiskFile>>>,
    open: Option<SegmentMeta>,
    batch: Option<Batch>,
    /// Bytes written, which are taken from the room.
    bytes: u64,
}

impl Writer {
    pub(super) fn new(disk: Arc<dyn Disk>, folder: PathBuf, room: Arc<Room>) -> io::Result<Writer> {
        std::fs::create_dir_all(&folder)?;
        let mut writer = Writer { disk, folder, room, out: None, open: None, batch: None, bytes: 0 };
        writer.reserve(FOOTER_BYTES)?;
        writer.out = Some(BufWriter::new(writer.disk.create(&writer.unfinished())?));
        Ok(writer)
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes the file safe under its name; `None` when no segment was taken.
    pub(super) fn seal(mut self) -> io::Result<Option<Batch>> {
        let (Some(mut out), Some(batch)) = (self.out.take(), self.batch) else { return Ok(None) };
        let batch = Batch { bytes: self.bytes, ..batch };
        out.write_all(&batch.footer())?;
        let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync()?;
        drop(file);
        self.disk.rename(&self.unfinished(), &self.folder.join(batch.name()))?;
        self.disk.sync_folder(&self.folder)?;
        // The room belongs to the file now.
        self.bytes = 0;
        Ok(Some(batch))
    }

    fn unfinished(&self) -> PathBuf {
        self.folder.join(UNFINISHED)
    }

    fn reserve(&mut self, bytes: usize) -> io::Result<()> {
        if !self.room.take(bytes as u64) {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "spool-max is reached"));
        }
        self.bytes += bytes as u64;
        Ok(())
    }
}

impl Sink for Writer {
    fn begin(&mut self, meta: &SegmentMeta) -> io::Result<()> {
        let follows = self
            .batch
            .as_ref()
            .is_none_or(|b| meta.range.follows(Some(b.range.max())) && meta.pre == Some(b.post));
        if !follows || self.open.is_some() {
            return Err(damaged("a segment that does not follow the one before"));
        }
        self.open = Some(*meta);
        Ok(())
    }

    fn chunk(&mut self, data: Bytes, last: bool) -> io::Result<()> {
        self.reserve(4 + data.len())?;
        let (Some(out), Some(meta)) = (&mut self.out, self.open) else {
            return Err(damaged("a chunk before its segment"));
        };
        let length = u32::try_from(data.len()).map_err(io::Error::other)?;
        out.write_all(&(length | if last { LAST } else { 0 }).to_le_bytes())?;
        out.write_all(&data)?;
        if last {
            self.open = None;
            let (min, pre, segments) = match self.batch {
                Some(batch) => (batch.range.min(), batch.pre, batch.segments),
                None => (meta.range.min(), meta.pre, 0),
            };
            let range = TxidRange::new(min, meta.range.max())
                .ok_or_else(|| damaged("a segment before the one before"))?;
            self.batch = Some(Batch { range, pre, post: meta.post, segments: segments + 1, bytes: 0 });
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.room.give_back(self.bytes);
            // The next start removes what this cannot.
            let _ = self.disk.remove(&self.unfinished());
        }
    }
}

/// Reads a file chunk by chunk.
pub(super) struct Reader {
    input: BufReader<File>,
    /// Bytes of chunks not read yet.
    left: u64,
}

impl Reader {
    pub(super) fn open(path: &Path, batch: &Batch) -> io::Result<Reader> {
        let file = File::open(path)?;
        let left = batch.bytes.saturating_sub(FOOTER_BYTES as u64);
        Ok(Reader { input: BufReader::new(file), left })
    }

    /// The next chunk and whether it is its segment's last; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<(Bytes, bool)>> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut word = [0; 4];
        self.input.read_exact(&mut word)?;
        let word = u32::from_le_bytes(word);
        let length = (word & !LAST) as usize;
        let left = self.left.checked_sub(4 + length as u64);
        let (Some(left), true) = (left, (1..=MAX_CHUNK_BYTES).contains(&length)) else {
            return Err(damaged("a chunk of impossible length"));
        };
        self.left = left;
        let mut data = vec![0; length];
        self.input.read_exact(&mut data)?;
        Ok(Some((data.into(), word & LAST != 0)))
    }
}
