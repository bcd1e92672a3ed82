//! The way of files into packs: databases with a file ready wait here until the lane has looked at every other one that
//! is behind, then all of them leave in one object.
//!
//! # Invariants
//! - One pack at a time. Until its outcome is known it is put again with the same number and the same bytes, and its
//!   databases take no other turn: so TXIDs ascend from pack to pack.
//! - A file waits for [`PATIENCE`] at most once a pack could go.
//! - When the place is gone, whoever waits leaves, and the pack under way counts as not put: what led to these files may
//!   be gone as well.
//! - Bounded: what waits is at most one pack and the files of the turns under way; then the lane starts no more turns.

use super::build::Built;
use super::error::TurnError;
use super::turn::Progress;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_store::destinations::{Body, FileKey, Put};
use walhub_store::pack::format::{Facts, MAX_FILE_BYTES, MAX_PACK_BYTES};
use walhub_store::pack::{Pack, PackedDestination, Writer};

/// Longest wait for databases whose turns take long.
const PATIENCE: Duration = Duration::from_secs(1);

/// Can this file go into a pack?
pub(super) fn takes(built: &Built) -> bool {
    matches!(built.body, Body::Bytes(_)) && built.bytes <= MAX_FILE_BYTES
}

/// See the module doc.
#[derive(Debug, Default)]
pub(super) struct Tray {
    /// Each has a file that is not put yet.
    waiting: Vec<Progress>,
    bytes: u64,
    since: Option<Instant>,
    /// A pack whose put failed or left its outcome open.
    unsettled: Option<Sealed>,
    under_way: bool,
}

/// A pack on its way, and the databases whose files it carries.
#[derive(Debug)]
pub(super) struct Sealed {
    seq: Option<u64>,
    pack: Pack,
    pub(super) riders: Vec<Progress>,
}

impl Sealed {
    /// Bytes of the object.
    pub(super) fn bytes(&self) -> u64 {
        self.pack.bytes.len() as u64
    }

    /// Puts it; after an error it may be put again.
    pub(super) async fn put(
        &mut self,
        packs: &PackedDestination,
        abort: &CancellationToken,
    ) -> Result<Put, TurnError> {
        let seq = match self.seq {
            Some(seq) => seq,
            None => packs.next(abort).await.map_err(TurnError::Destination)?,
        };
        self.seq = Some(seq);
        packs.put_pack(seq, &self.pack, abort).await.map_err(TurnError::Destination)
    }
}

impl Tray {
    /// A database whose pending file [`takes`] accepts.
    pub(super) fn add(&mut self, progress: Progress) {
        self.bytes += progress.pending().map_or(0, |built| built.bytes);
        self.since.get_or_insert_with(Instant::now);
        self.waiting.push(progress);
    }

    /// No more turns may be started.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= MAX_PACK_BYTES
    }

    /// Something waits to be put.
    pub(super) fn holds_any(&self) -> bool {
        self.unsettled.is_some() || !self.waiting.is_empty()
    }

    /// When a pack goes although other turns are not done.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.under_way { None } else { self.since.map(|since| since + PATIENCE) }
    }

    /// A pack is being put.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// The next pack to put: the one that failed, or a new one of what waits. `quiet`: no other turn is due or under way.
    pub(super) fn next(&mut self, quiet: bool) -> Option<Sealed> {
        if self.under_way {
            return None;
        }
        let ready = quiet || self.is_full() || self.due().is_some_and(|due| due <= Instant::now());
        let sealed = match self.unsettled.take() {
            Some(sealed) => Some(sealed),
            None if ready && !self.waiting.is_empty() => Some(self.seal()),
            None => None,
        };
        self.under_way = sealed.is_some();
        sealed
    }

    /// The pack that was under way is settled.
    pub(super) fn settled(&mut self) {
        self.under_way = false;
    }

    /// The pack that was under way is to be put again.
    pub(super) fn put_back(&mut self, sealed: Sealed) {
        self.under_way = false;
        self.unsettled = Some(sealed);
    }

    /// Everybody who waits leaves without a pack; one that is under way is not concerned.
    pub(super) fn clear(&mut self) -> Vec<Progress> {
        (self.bytes, self.since) = (0, None);
        let unsettled = self.unsettled.take().map(|sealed| sealed.riders);
        self.waiting.drain(..).chain(unsettled.unwrap_or_default()).collect()
    }

    fn seal(&mut self) -> Sealed {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.sort_by(|a, b| a.key.cmp(&b.key));
        let (mut writer, mut riders) = (Writer::default(), Vec::with_capacity(waiting.len()));
        for progress in waiting {
            let built = progress.pending().expect("BUG: who waits has a file");
            let Body::Bytes(bytes) = &built.body else { unreachable!("BUG: a file in memory") };
            let facts = Facts {
                key: FileKey { database: progress.key.clone(), level: built.level, range: built.range },
                lineage: built.lineage,
                post: built.meta.post,
                time_ms: built.meta.time_ms,
                page_size: built.page_size,
            };
            match writer.push(facts, bytes) {
                Ok(()) => riders.push(progress),
                Err(_) => self.waiting.push(progress),
            }
        }
        self.bytes = self.waiting.iter().filter_map(|p| p.pending()).map(|built| built.bytes).sum();
        if self.waiting.is_empty() {
            self.since = None;
        }
        Sealed { seq: None, pack: writer.finish(), riders }
    }
}
