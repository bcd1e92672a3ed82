//! Parts → one snapshot: the newest version of each page, streamed, in the order of the pages.

use super::StagingError;
use super::area::Area;
use super::catalog::{RUN, Version};
use bytes::Bytes;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use walhub_common::limits::MAX_CHUNK_BYTES;
use walhub_common::ltx::{self, Encoder, Header, LtxError, Provenance};
use walhub_common::{Checksum, Pgno, TxidRange};

/// Part files open at once. Pages of the first pass lie in part after part; what was sent again lies in few.
const OPEN_PARTS: usize = 16;

/// What the parts together are, as the node says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seal {
    /// Transactions, from 1.
    pub range: TxidRange,
    /// Database checksum.
    pub post: Checksum,
    /// The part that completes it; its header says how many pages the database has.
    pub last_part: u32,
    /// Agent time, Unix ms.
    pub agent_time_ms: i64,
}

/// Takes the bytes of a snapshot; false when it wants no more.
pub(super) type Out<'a> = dyn FnMut(Bytes, bool) -> bool + 'a;

impl Area {
    /// Streams the snapshot. Memory: a run of the catalog, two pages, and the LTX index.
    pub(super) fn seal(&self, seal: &Seal, out: &mut Out<'_>) -> Result<(), StagingError> {
        let catalog =
            self.catalog.as_ref().ok_or_else(|| StagingError::Corrupt("there are no parts".into()))?;
        let last = super::part::contents(&File::open(self.part(seal.last_part))?)?.header;
        let page_size = catalog.page_size();
        let header = Header {
            page_size,
            commit: last.commit,
            range: seal.range,
            timestamp_ms: seal.agent_time_ms,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 0,
            provenance: Some(Provenance { pre: None, post: seal.post }),
        };
        let mut encoder = Encoder::new(Chunker { out, buffer: Vec::new() }, header).map_err(encoding)?;
        let mut parts = Parts { area: self, open: VecDeque::new() };
        let (mut sum, mut block, mut page) = (Checksum::EMPTY, Vec::new(), Vec::new());
        let lock = page_size.lock_page();
        let mut next = 1;
        while next <= last.commit {
            let count = RUN.min((last.commit - next) as usize + 1);
            let first = Pgno::new(next).expect("BUG: from 1");
            let mut versions = catalog.read(first, count)?;
            versions.resize(count, None);
            for (at, version) in versions.into_iter().enumerate() {
                let pgno = Pgno::new(next + at as u32).expect("BUG: from 1");
                if pgno == lock {
                    continue;
                }
                let version =
                    version.ok_or_else(|| StagingError::Corrupt(format!("page {pgno} was never sent")))?;
                parts.read(&version, &mut block)?;
                ltx::expand(&block, page_size, &mut page).map_err(|_| damaged(pgno))?;
                if Checksum::of_page(pgno, &page) != version.checksum {
                    return Err(damaged(pgno));
                }
                sum = sum.toggle(version.checksum);
                encoder.page_lz4(pgno, &block, &page).map_err(encoding)?;
            }
            next += count as u32;
        }
        if sum != seal.post {
            return Err(StagingError::Corrupt(format!(
                "the staged pages give database checksum {sum}, the node says {}",
                seal.post
            )));
        }
        let (chunker, _) = encoder.finish().map_err(encoding)?;
        chunker.finish()
    }
}

fn damaged(pgno: Pgno) -> StagingError {
    StagingError::Corrupt(format!("page {pgno} was damaged on the hub's disk"))
}

fn encoding(error: LtxError) -> StagingError {
    match error {
        LtxError::Io(e) if e.kind() == io::ErrorKind::BrokenPipe => StagingError::GivenUp,
        LtxError::Io(e) => StagingError::Io(e),
        e => StagingError::Corrupt(e.to_string()),
    }
}

/// Open part files, the least recently opened first.
struct Parts<'a> {
    area: &'a Area,
    open: VecDeque<(u32, File)>,
}

impl Parts<'_> {
    fn read(&mut self, version: &Version, block: &mut Vec<u8>) -> Result<(), StagingError> {
        let at = match self.open.iter().position(|(number, _)| *number == version.part) {
            Some(at) => at,
            None => {
                let file = File::open(self.area.part(version.part))?;
                if self.open.len() == OPEN_PARTS {
                    self.open.pop_front();
                }
                self.open.push_back((version.part, file));
                self.open.len() - 1
            }
        };
        let most = walhub_common::limits::MAX_PART_FILE_BYTES;
        if u64::from(version.size) > most {
            return Err(StagingError::Corrupt("the catalog is damaged".into()));
        }
        block.resize(version.size as usize, 0);
        self.open[at].1.read_exact_at(block, version.offset.into()).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => StagingError::Corrupt("a part is shorter than it was".into()),
            _ => StagingError::Io(e),
        })
    }
}

/// Cuts the stream into chunks; one leaves when more follows, so that the last one is known to be the last.
struct Chunker<'a, 'b> {
    out: &'a mut Out<'b>,
    buffer: Vec<u8>,
}

impl Chunker<'_, '_> {
    fn finish(self) -> Result<(), StagingError> {
        if (self.out)(self.buffer.into(), true) { Ok(()) } else { Err(StagingError::GivenUp) }
    }
}

impl Write for Chunker<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == MAX_CHUNK_BYTES && !(self.out)(std::mem::take(&mut self.buffer).into(), false)
        {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let taken = bytes.len().min(MAX_CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
