//! Bytes of the page map's files: anchors, entries, and streams that sum what passes.

use super::Anchor;
use crate::page_map::Entry;
use std::io::{self, Read, Write};
use walhub_common::checksum::FileDigest;
use walhub_common::wal::{FrameNo, Salts, WalPosition};
use walhub_common::{Checksum, PageSize, Pos, Txid};

pub(super) const ANCHOR_BYTES: usize = 3 * 8 + 8 * 4;
pub(super) const ENTRY_BYTES: usize = 16;

pub(super) fn encode_anchor(anchor: &Anchor, page_size: Option<PageSize>, commit: u32) -> [u8; ANCHOR_BYTES] {
    let mut out = [0; ANCHOR_BYTES];
    let longs = [
        anchor.lineage,
        anchor.position.map_or(0, |p| p.txid.get()),
        anchor.position.map_or(0, |p| p.checksum.get()),
    ];
    let wal = anchor
        .wal
        .map_or([0; 6], |w| [1, w.salts.0[0], w.salts.0[1], w.frame.get(), w.checksum[0], w.checksum[1]]);
    for (out, value) in out.chunks_exact_mut(8).zip(longs) {
        out.copy_from_slice(&value.to_le_bytes());
    }
    let words = [page_size.map_or(0, PageSize::get), commit].into_iter().chain(wal);
    for (out, value) in out[24..].chunks_exact_mut(4).zip(words) {
        out.copy_from_slice(&value.to_le_bytes());
    }
    out
}

pub(super) fn decode_anchor(bytes: &[u8; ANCHOR_BYTES]) -> (Anchor, Option<PageSize>, u32) {
    let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("BUG: 8 bytes"));
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("BUG: 4 bytes"));
    let position = match (Txid::new(long(8)), Checksum::new(long(16))) {
        (Some(txid), Some(checksum)) => Some(Pos { txid, checksum }),
        _ => None,
    };
    let wal = (word(32) == 1).then(|| WalPosition {
        salts: Salts([word(36), word(40)]),
        frame: FrameNo(word(44)),
        checksum: [word(48), word(52)],
    });
    (Anchor { lineage: long(0), position, wal }, PageSize::new(word(24)), word(28))
}

pub(super) fn encode_entry(entry: &Entry) -> [u8; ENTRY_BYTES] {
    let mut out = [0; ENTRY_BYTES];
    out[..8].copy_from_slice(&entry.checksum.to_le_bytes());
    out[8..].copy_from_slice(&entry.txid.to_le_bytes());
    out
}

pub(super) fn decode_entry(bytes: &[u8; ENTRY_BYTES]) -> Entry {
    let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("BUG: 8 bytes"));
    Entry { checksum: long(0), txid: long(8) }
}

/// Writes and sums; ends with the sum.
pub(super) struct Summed<W> {
    out: W,
    digest: FileDigest,
    bytes: u64,
}

impl<W: Write> Summed<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, digest: FileDigest::default(), bytes: 0 }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    pub(super) fn finish(mut self) -> io::Result<(W, u64)> {
        self.out.write_all(&self.digest.finish().get().to_le_bytes())?;
        Ok((self.out, self.bytes + 8))
    }
}

/// Reads and sums.
pub(super) struct SummedReader<R> {
    input: R,
    digest: FileDigest,
    /// Bytes that the file still has.
    pub(super) left: u64,
}

impl<R: Read> SummedReader<R> {
    pub(super) fn new(input: R, left: u64) -> Self {
        Self { input, digest: FileDigest::default(), left }
    }

    pub(super) fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        self.digest.update(&bytes);
        self.left = self.left.saturating_sub(N as u64);
        Ok(bytes)
    }

    pub(super) fn verified(mut self) -> io::Result<bool> {
        let computed = self.digest.finish().get();
        Ok(u64::from_le_bytes(self.take()?) == computed)
    }
}
