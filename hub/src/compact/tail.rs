//! The newest file of a folder's level 0, made one that stock Litestream can go on from.
//!
//! Litestream begins at the newest transaction of level 0 and wants it in a file of its own. But what an agent sent as one
//! segment (the transactions of a stream that it saw at once, or what a full buffer merged) lies there as one file `a..b`.
//! When the database rests, `b..b` takes its place, with the same pages: they are what they are after `b`, so whatever
//! state since `a` it follows, it leads to that of `b`. Nothing leads to `b-1`, as before.
//!
//! # Invariants
//! - Every restore point stays reachable at every instant: files of higher levels hold all of `a..b` before it goes, and end
//!   with `b`, so that Litestream's own compaction goes on behind it. A file `1..b` is put as a snapshot first.
//! - New before old: after a crash both lie there, and the next look removes the old one.
//! - Nothing is deleted of a database on hold, or that somebody reads.
//! - It is done in a [`Turn`]: no plan of retention that knows the old files deletes what stands in for them.
//!
//! Non-goals: buckets, for which this would cost requests, and from which nobody can go on who has no database.

use super::sources;
use crate::copies::{Place, Turn};
use crate::durable::Temp;
use crate::retain::{Holds, Pins};
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::{Decoder, Encoder, Header, LtxError, Provenance};
use walhub_common::{DatabaseKey, Level, Txid, TxidRange};
use walhub_store::compact::Input;
use walhub_store::destinations::{Body, DestinationError, FileKey, Listed, PutMeta};
use walhub_store::restore::{DestinationSource, DynSource, PlannedFile};

/// A longer file is left as it is.
const MAX_BYTES: u64 = 1 << 30;

/// Why a tail was not parted.
#[derive(Debug, thiserror::Error)]
pub(super) enum TailError {
    /// Somebody reads the database: later.
    #[error("the database is being read")]
    Read,
    #[error(transparent)]
    Destination(#[from] DestinationError),
    #[error("the newest file of level 0 cannot be parted: {0}")]
    Ltx(#[from] LtxError),
    #[error("the newest file of level 0 cannot be parted: {0}")]
    Disk(#[from] std::io::Error),
}

/// What is to be done at the end of level 0.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Cut {
    /// Files to replace, all of which end with the newest transaction.
    old: Vec<Listed>,
    /// They are the only ones that begin the history.
    whole: bool,
}

/// Judges what a folder holds up to `newest`; `None` when the last transaction lies alone, or nothing stands in for the file
/// that holds it. Pure.
fn cut(raw: &[Listed], above: &[Listed], newest: Txid) -> Option<Cut> {
    if raw.iter().chain(above).any(|file| file.range.max() > newest) {
        return None;
    }
    let old: Vec<Listed> =
        raw.iter().filter(|file| file.range.max() == newest && file.range.count() > 1).cloned().collect();
    let begin = old.iter().map(|file| file.range.min()).min()?;
    if begin == Txid::FIRST {
        return Some(Cut { old, whole: true });
    }
    let mut above: Vec<TxidRange> = above.iter().map(|file| file.range).collect();
    above.sort_unstable();
    let mut held = begin.get() - 1;
    for range in above {
        if range.min().get() <= held + 1 {
            held = held.max(range.max().get());
        }
    }
    (held == newest.get()).then_some(Cut { old, whole: false })
}

/// See the module doc.
pub(super) struct Tails {
    holds: Arc<Holds>,
    pub(super) pins: Pins,
    folder: PathBuf,
    made: AtomicU64,
    stop: CancellationToken,
}

impl Tails {
    /// Files in the making lie in `folder`.
    pub(super) fn new(holds: Arc<Holds>, pins: Pins, folder: PathBuf, stop: CancellationToken) -> Self {
        Self { holds, pins, folder, made: AtomicU64::new(0), stop }
    }

    /// Leaves the transaction `newest`, up to which a destination holds a database, alone at the end of a folder's level 0,
    /// if that can be done now, in the `_turn` of whoever asks. May be repeated after any error.
    pub(super) async fn part(
        &self,
        place: &Place,
        database: &DatabaseKey,
        newest: Txid,
        _turn: &Turn,
    ) -> Result<(), TailError> {
        let destination = &place.destination;
        if destination.kind() != "file" || destination.packs().is_some() || self.holds.is_held(database) {
            return Ok(());
        }
        let raw = destination.list(database, Level::RAW, &self.stop).await?;
        if raw.iter().all(|file| file.range.max() != newest || file.range.count() == 1) {
            return Ok(());
        }
        let mut above = Vec::new();
        for level in Level::all().filter(|level| *level != Level::RAW) {
            above.extend(destination.list(database, level, &self.stop).await?);
        }
        let Some(Cut { old, whole }) = cut(&raw, &above, newest) else { return Ok(()) };
        let Some(last) = old.last().filter(|last| last.size <= MAX_BYTES) else { return Ok(()) };
        let claim = self.pins.claim(database).ok_or(TailError::Read)?;
        if let Some(first) = old.iter().find(|file| whole && file.range.min() == Txid::FIRST) {
            self.put(place, database, first, (Level::SNAPSHOT, first.range)).await?;
        }
        self.put(place, database, last, (Level::RAW, TxidRange::single(newest))).await?;
        if claim.stop().is_cancelled() {
            return Err(TailError::Read);
        }
        let key =
            |file: &Listed| FileKey { database: database.clone(), level: Level::RAW, range: file.range };
        let keys: Vec<FileKey> = old.iter().map(key).collect();
        destination.delete(&keys, &self.stop).await?;
        tracing::debug!(%database, destination = %place.name(), %newest, "the newest transaction lies alone");
        Ok(())
    }

    /// Puts the pages of `file`, of level 0, under another name.
    async fn put(
        &self,
        place: &Place,
        database: &DatabaseKey,
        file: &Listed,
        (level, range): (Level, TxidRange),
    ) -> Result<(), TailError> {
        let source: DynSource = Arc::new(DestinationSource(place.destination.clone()));
        let planned = PlannedFile {
            source: source.name().clone(),
            level: file.level,
            range: file.range,
            size: file.size,
            time_ms: file.time_ms,
        };
        let input = sources::streamed(vec![source], database, planned, &self.stop);
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("tail-{}-{number}.ltx", place.lane));
        let temp = Temp::new(path.clone());
        let made = tokio::task::spawn_blocking(move || rename(input, range, &path)).await;
        let header = made.map_err(std::io::Error::other)??;
        let key = FileKey { database: database.clone(), level, range };
        let post = header.provenance.map(|provenance| provenance.post);
        let meta = PutMeta { time_ms: header.timestamp_ms, post };
        place.destination.put(&key, Body::File(temp.path().to_owned()), meta, &self.stop).await?;
        Ok(())
    }
}

/// Writes the same pages as a file of these transactions.
fn rename(input: Input, range: TxidRange, out: &Path) -> Result<Header, TailError> {
    let mut decoder = Decoder::new(BufReader::new(input()?))?;
    let was = *decoder.header();
    // What lies before the last transaction alone nobody took a checksum of.
    let before = |provenance: Provenance| provenance.pre.filter(|_| range.min() == was.range.min());
    let provenance = was.provenance.map(|known| Provenance { pre: before(known), ..known });
    let header = Header { range, provenance, ..was };
    let mut encoder = Encoder::new(BufWriter::new(File::create(out)?), header)?;
    encoder.spool_index(out.parent().unwrap_or_else(|| Path::new(".")));
    let mut page = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page)? {
        match decoder.block() {
            Some(block) => encoder.page_lz4(pgno, block, &page)?,
            None => encoder.page(pgno, &page)?,
        }
    }
    decoder.finish()?;
    encoder.finish()?;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(level: u8, ranges: &[(u64, u64)]) -> Vec<Listed> {
        let level = Level::new(level).unwrap();
        let file = |&(min, max): &(u64, u64)| TxidRange::from_raw(min, max).unwrap();
        ranges.iter().map(|pair| Listed { level, range: file(pair), size: 1, time_ms: 0 }).collect()
    }

    fn judged(raw: &[(u64, u64)], above: &[(u64, u64)], newest: u64) -> Option<(Vec<u64>, bool)> {
        let cut = cut(&files(0, raw), &files(1, above), Txid::new(newest).unwrap())?;
        Some((cut.old.iter().map(|file| file.range.min().get()).collect(), cut.whole))
    }

    #[test]
    fn only_what_higher_files_hold_to_its_end_is_replaced() {
        assert_eq!(judged(&[(1, 1), (2, 9)], &[(2, 9)], 9), Some((vec![2], false)));
        assert_eq!(judged(&[(1, 1), (2, 4), (5, 9)], &[(2, 6), (7, 9)], 9), Some((vec![5], false)));
        assert_eq!(judged(&[(2, 9), (9, 9)], &[(1, 9)], 9), Some((vec![2], false)), "a crash left both");
        assert_eq!(judged(&[(1, 9)], &[(2, 9)], 9), Some((vec![1], true)));
        assert_eq!(judged(&[(1, 9)], &[], 9), Some((vec![1], true)));
        assert_eq!(judged(&[(1, 1), (2, 9)], &[], 9), None);
        assert_eq!(judged(&[(1, 1), (2, 9)], &[(2, 8)], 9), None, "its end is nowhere else");
        assert_eq!(judged(&[(1, 1), (2, 9)], &[(4, 9)], 9), None, "its beginning is nowhere else");
        assert_eq!(judged(&[(1, 1), (2, 9)], &[(2, 4), (6, 9)], 9), None, "a hole");
        assert_eq!(judged(&[(1, 1), (2, 8), (9, 9)], &[(2, 9)], 9), None, "it lies alone");
        assert_eq!(judged(&[(1, 1), (2, 9), (10, 12)], &[(2, 9)], 9), None, "something newer is there");
        assert_eq!(judged(&[], &[(1, 9)], 9), None);
    }
}
