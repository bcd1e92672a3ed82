//! One database's turn at one destination: settle, build, put, advance. At most one file per turn, so that databases
//! take turns.
//!
//! But a folder gets the last transaction of a flush as a file of its own, in the same turn. The newest file of level 0
//! then holds one transaction, from which stock Litestream can go on when somebody leaves us. Only folders: a bucket
//! counts requests. (What the agent sent as one segment is one file, until compaction has come to its end.)

use super::build::{Built, Share, Wanted, build};
use super::catchup::{self, Step};
use super::coverage;
use super::error::TurnError;
use super::tray;
use super::{Trust, Venue};
use crate::buffer::{BufferError, DatabaseId};
use std::collections::VecDeque;
use std::time::Duration;
use walhub_common::ltx::{HEADER_BYTES, Header, Provenance};
use walhub_common::{Checksum, DatabaseKey, Level, PageSize, Pos, Txid, TxidRange};
use walhub_store::destinations::{Fault, FileKey, Listed, Put};

/// Segments listed at once.
const PAGE: usize = 1024;
/// Sending this much costs more than asking first.
const LARGE: u64 = 1 << 20;

/// Where a lane stands with a database.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) id: DatabaseId,
    pub(super) key: DatabaseKey,
    /// Newest transaction at the destination.
    pub(super) cursor: Option<Txid>,
    /// Database checksum there, when it is known.
    pub(super) post: Option<Checksum>,
    /// Least time between two flushes.
    pub(super) interval: Duration,
    trust: Trust,
    look: Look,
    /// Page size at the destination, once it is known.
    page_size: Option<PageSize>,
    /// A file whose put has not succeeded yet.
    pending: Option<Built>,
    /// The next file is to hold one segment.
    one: bool,
    /// Files of another destination that lead on from the cursor.
    chain: VecDeque<Step>,
}

/// Was the destination looked at since the start?
#[derive(Debug)]
enum Look {
    /// Not yet.
    Due,
    /// Yes.
    Done,
}

/// What a turn did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Turn {
    /// More is waiting: another turn at once.
    pub(super) more: bool,
    /// Bytes of what was created, if anything was.
    pub(super) created: Option<u64>,
    /// How many objects these are.
    pub(super) objects: u64,
    /// The pending file waits for a pack.
    pub(super) waits: bool,
}

impl Progress {
    pub(super) fn new(
        id: DatabaseId,
        key: DatabaseKey,
        cursor: Option<Txid>,
        interval: Duration,
        trust: Trust,
    ) -> Self {
        let (look, chain) = (Look::Due, VecDeque::new());
        let (post, page_size, pending, one) = (None, None, None, false);
        Self { id, key, cursor, post, interval, trust, look, page_size, pending, one, chain }
    }

    /// The cursor is not believed, and the destination was not looked at yet.
    pub(super) fn must_be_seen(&self) -> bool {
        self.trust == Trust::Listings && matches!(self.look, Look::Due)
    }

    /// Bytes that the next turn is known to send.
    fn next_bytes(&self) -> u64 {
        let copied = self.chain.front().map(|step| step.file.size);
        self.pending.as_ref().map(|built| built.bytes).or(copied).unwrap_or(0)
    }

    /// The file that is to be put next.
    pub(super) fn pending(&self) -> Option<&Built> {
        self.pending.as_ref()
    }

    /// What it holds is not believed, with or without something new to bring.
    pub(super) fn distrust(&mut self) {
        self.unsettle();
        self.cursor = None;
        self.trust = Trust::Listings;
    }

    /// The destination must be looked at again before anything is put.
    pub(super) fn unsettle(&mut self) {
        self.look = Look::Due;
        self.pending = None;
        self.one = false;
        self.chain.clear();
    }
}

impl Venue {
    /// Takes one turn. After an error the same turn may be taken again.
    pub(super) async fn turn(&self, progress: &mut Progress) -> Result<Turn, TurnError> {
        self.settle(progress).await?;
        let first = self.step(progress).await?;
        if !progress.one {
            return Ok(first);
        }
        let last = self.step(progress).await?;
        progress.one = false;
        let created = [first.created, last.created].into_iter().flatten().reduce(|a, b| a + b);
        Ok(Turn { created, objects: first.objects + last.objects, ..last })
    }

    /// One file.
    async fn step(&self, progress: &mut Progress) -> Result<Turn, TurnError> {
        if progress.pending.is_none() {
            match self.build(progress).await {
                Ok(Some(built)) => {
                    progress.chain.clear();
                    progress.pending = Some(built);
                }
                Ok(None) => return Ok(Turn::default()),
                Err(TurnError::Buffer(
                    error @ (BufferError::Trimmed { .. } | BufferError::Corrupt { .. }),
                )) => {
                    progress.pending = Some(self.fetch_from_sibling(progress, error).await?);
                }
                Err(error) => return Err(error),
            }
        }
        self.put(progress).await
    }

    /// A turn at a destination that failed the last time: it asks for a byte before it sends many.
    pub(super) async fn careful_turn(&self, progress: &mut Progress) -> Result<Turn, TurnError> {
        if progress.next_bytes() > LARGE {
            let level = progress.pending.as_ref().map_or(Level::RAW, |built| built.level);
            let key =
                FileKey { database: progress.key.clone(), level, range: TxidRange::single(Txid::FIRST) };
            let answer = self.place.destination.read_start(&key, 1, &self.abort).await;
            answer.map(drop).or_else(|error| match error.fault {
                Fault::NotFound => Ok(()),
                _ => Err(TurnError::Destination(error)),
            })?;
        }
        self.turn(progress).await
    }

    async fn build(&self, progress: &Progress) -> Result<Option<Built>, TurnError> {
        let (buffer, tmp) = (self.buffer.clone(), self.tmp.clone());
        let lane = self.place.name().clone();
        let lineage = buffer.find(&progress.key).map_or(0, |held| held.lineage);
        let Progress { id, cursor, page_size, .. } = *progress;
        let share = match self.place.destination.kind() {
            _ if progress.one => Share::First,
            "file" if self.place.destination.packs().is_none() => Share::ButLast,
            _ => Share::All,
        };
        let wanted = Wanted { database: id, lineage, after: cursor, page_size, share };
        tokio::task::spawn_blocking(move || build(&*buffer, &lane, wanted, &tmp))
            .await
            .map_err(|e| TurnError::Internal(e.to_string()))?
    }

    async fn put(&self, progress: &mut Progress) -> Result<Turn, TurnError> {
        let built = progress.pending.as_ref().expect("BUG: nothing to put");
        if self.place.destination.packs().is_some() && tray::takes(built) {
            return Ok(Turn { waits: true, ..Turn::default() });
        }
        let key = FileKey { database: progress.key.clone(), level: built.level, range: built.range };
        let put = self
            .place
            .destination
            .put(&key, built.body.clone(), built.meta, &self.abort)
            .await
            .map_err(TurnError::Destination)?;
        let created = (put == Put::Created).then_some(built.bytes);
        Ok(Turn { created, objects: created.is_some().into(), ..self.arrived(progress)? })
    }

    /// The pending file is at the destination.
    pub(super) fn arrived(&self, progress: &mut Progress) -> Result<Turn, TurnError> {
        let built = progress.pending.as_ref().expect("BUG: nothing was put");
        let (more, page_size, txid, one) = (built.more, built.page_size, built.range.max(), built.then_one);
        self.board.points().reached(self.place.lane, progress.id, built.level, txid);
        let post = built.meta.post;
        self.advance(progress, txid)?;
        progress.post = post;
        progress.one = one;
        progress.page_size = Some(page_size);
        progress.pending = None;
        Ok(Turn { more, ..Turn::default() })
    }

    fn advance(&self, progress: &mut Progress, txid: Txid) -> Result<(), TurnError> {
        self.buffer.set_cursor(&self.place.entry.cursor, progress.id, txid)?;
        progress.cursor = Some(txid);
        self.board.post_copy(self.place.lane, progress.id, &progress.key, progress.cursor);
        Ok(())
    }

    /// What the destination was known to hold of a database counts no longer, nor after a restart.
    pub(super) fn holds_nothing(&self, database: DatabaseId, key: &DatabaseKey) {
        self.board.post_copy(self.place.lane, database, key, None);
        if let Err(error) = self.buffer.clear_cursor(&self.place.entry.cursor, database) {
            tracing::warn!(destination = %self.place.name(), database = %key, %error, "a void cursor stays");
        }
    }

    async fn fetch_from_sibling(
        &self,
        progress: &mut Progress,
        reason: BufferError,
    ) -> Result<Built, TurnError> {
        if progress.chain.is_empty() {
            progress.chain = catchup::plan(self, progress, reason).await?;
        }
        let step = progress.chain.pop_front().expect("BUG: an empty plan is an error");
        let fetched = catchup::fetch(self, progress, &step).await;
        if fetched.is_err() {
            progress.chain.clear();
        }
        fetched
    }

    /// Looks, once, at what the destination holds and goes on from there.
    async fn settle(&self, progress: &mut Progress) -> Result<(), TurnError> {
        let Look::Due = progress.look else { return Ok(()) };
        let (lane, points) = (self.place.lane, self.board.points());
        let changes = points.changes(lane, progress.id);
        let files = self.place.destination.list_all(&progress.key, &self.abort).await;
        let files = files.map_err(TurnError::Destination)?;
        let reach = coverage::reach(&files).cloned();
        let (go_on, post, page_size) = match &reach {
            Some(last) => {
                let (go_on, post, page_size) = self.same_history(progress, last).await?;
                (go_on, post, Some(page_size))
            }
            None => (None, None, None),
        };
        points.learn(lane, progress.id, changes, &files);
        (progress.post, progress.page_size) = (post, page_size);
        let found = reach.map(|file| file.range.max());
        if found < progress.cursor {
            let (database, destination) = (&progress.key, self.place.name());
            tracing::warn!(%database, %destination, ?found, expected = ?progress.cursor, "files are missing at a destination, they are put again");
        }
        match go_on {
            Some(txid) => self.advance(progress, txid)?,
            None => {
                progress.cursor = None;
                self.holds_nothing(progress.id, &progress.key);
            }
        }
        progress.look = Look::Done;
        Ok(())
    }

    /// Refuses to go on behind files that are not of our history. Where to go on: after the last one, or before the
    /// segment in the middle of which it ends. That one is put whole; it changes every page that differs from any state
    /// since its beginning, so it may follow each of them. And the database checksum there, when it is known, and the
    /// page size.
    async fn same_history(
        &self,
        progress: &Progress,
        last: &Listed,
    ) -> Result<(Option<Txid>, Option<Checksum>, PageSize), TurnError> {
        let other = |text| Err(TurnError::History(text));
        let held = self.buffer.find(&progress.key);
        let (lineage, position) = held.map_or((0, None), |held| (held.lineage, held.position));
        let txid = last.range.max();
        let Some(position) = position.filter(|pos| pos.txid >= txid) else {
            let held = position.map_or(0, |pos| pos.txid.get());
            return other(format!("its files reach to {}, the hub's to {held}", txid.get()));
        };
        let key = FileKey { database: progress.key.clone(), level: last.level, range: last.range };
        let start = self.place.destination.read_start(&key, HEADER_BYTES, &self.abort).await;
        let header = Header::decode(&start.map_err(TurnError::Destination)?);
        let header = header.map_err(|e| TurnError::History(format!("{}: {e}", last.range)))?;
        if header.node_id != 0 && header.node_id != lineage {
            return other(format!(
                "its files are of lineage {:016x}, the hub's {lineage:016x}",
                header.node_id
            ));
        }
        let Some(Provenance { post, .. }) = header.provenance else {
            return other(format!("{} was not written by walhub", last.range));
        };
        let go_on = |txid, post| Ok((txid, post, header.page_size));
        match self.place_of(progress.id, txid, position)? {
            // Our own record of the cursor is all there is.
            Place::Gone => go_on(Some(txid), Some(post)),
            Place::End(expected) if post == expected => go_on(Some(txid), Some(post)),
            Place::End(expected) => {
                other(format!("at {} its checksum is {post}, the hub's {expected}", txid.get()))
            }
            Place::Inside(range) if header.node_id == lineage => {
                let (database, destination) = (&progress.key, self.place.name());
                tracing::info!(%database, %destination, %txid, segment = %range, "a destination ends in the middle of a segment, which is put whole");
                go_on(Txid::new(range.min().get() - 1), None)
            }
            Place::Inside(range) => {
                other(format!("its files end at {}, in the middle of our segment {range}", txid.get()))
            }
        }
    }

    /// What our history knows of `txid`.
    fn place_of(&self, id: DatabaseId, txid: Txid, position: Pos) -> Result<Place, TurnError> {
        if position.txid == txid {
            return Ok(Place::End(position.checksum));
        }
        let next = self.buffer.list(id, Some(txid), 1)?.into_iter().next();
        let follows = next.filter(|next| next.meta.range.follows(Some(txid)));
        if let Some(expected) = follows.and_then(|next| next.meta.pre) {
            return Ok(Place::End(expected));
        }
        let mut after = None;
        loop {
            let page = self.buffer.list(id, after, PAGE)?;
            let Some(last) = page.last() else { return Ok(Place::Gone) };
            after = Some(last.meta.range.max());
            let Some(found) = page.iter().find(|segment| segment.meta.range.max() >= txid) else { continue };
            return Ok(match found.meta.range {
                range if range.max() == txid => Place::End(found.meta.post),
                range if range.min() <= txid => Place::Inside(range),
                _ => Place::Gone,
            });
        }
    }
}

/// Where a transaction lies in the buffer's history.
enum Place {
    /// A segment ends with it; the database checksum there.
    End(Checksum),
    /// Inside of this segment.
    Inside(TxidRange),
    /// It has left the buffer, or never lay in it.
    Gone,
}
