//! One database's turn at one destination: settle, build, put, advance. At most one file per turn, so that databases
//! take turns.

use super::Shared;
use super::build::{Built, build};
use super::catchup::{self, Step};
use super::coverage;
use super::error::TurnError;
use crate::buffer::{BufferError, DatabaseId, WalBuffer};
use std::collections::VecDeque;
use std::sync::Arc;
use walhub_common::ltx::{HEADER_BYTES, Header};
use walhub_common::{Checksum, DatabaseKey, Level, Pos, Txid};
use walhub_store::destinations::{DynDestination, FileKey, Listed, Put};

/// Where a lane stands with a database.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) id: DatabaseId,
    pub(super) key: DatabaseKey,
    /// Newest transaction at the destination.
    pub(super) cursor: Option<Txid>,
    look: Look,
    /// A file whose put has not succeeded yet.
    pending: Option<Built>,
    /// Files of another destination that lead on from the cursor.
    chain: VecDeque<Step>,
}

/// Was the destination looked at since the start?
#[derive(Debug)]
enum Look {
    /// Not yet: these levels are still to be listed. What was learned survives a failure.
    At { levels: Vec<Level>, files: Vec<Listed> },
    /// Yes.
    Done,
}

impl Look {
    fn again() -> Self {
        Look::At { levels: Level::all().rev().collect(), files: Vec::new() }
    }
}

/// What a turn did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Turn {
    /// More is waiting: another turn at once.
    pub(super) more: bool,
    /// Bytes of the file that was created, if one was.
    pub(super) created: Option<u64>,
}

impl Progress {
    pub(super) fn new(id: DatabaseId, key: DatabaseKey, cursor: Option<Txid>) -> Self {
        Self { id, key, cursor, look: Look::again(), pending: None, chain: VecDeque::new() }
    }

    /// The destination must be looked at again before anything is put.
    pub(super) fn unsettle(&mut self) {
        self.look = Look::again();
        self.pending = None;
        self.chain.clear();
    }
}

/// The place of a turn.
pub(super) struct Venue<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) lane: usize,
}

impl Venue<'_> {
    fn destination(&self) -> &DynDestination {
        &self.shared.destinations[self.lane]
    }

    fn buffer(&self) -> &Arc<dyn WalBuffer> {
        &self.shared.buffer
    }

    /// Takes one turn. After an error the same turn may be taken again.
    pub(super) async fn turn(&self, progress: &mut Progress) -> Result<Turn, TurnError> {
        self.settle(progress).await?;
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
                    return self.copy_from_sibling(progress, error).await;
                }
                Err(error) => return Err(error),
            }
        }
        self.put(progress).await
    }

    async fn build(&self, progress: &Progress) -> Result<Option<Built>, TurnError> {
        let (buffer, tmp) = (self.buffer().clone(), self.shared.tmp.clone());
        let (lane, id, cursor) = (self.destination().name().clone(), progress.id, progress.cursor);
        tokio::task::spawn_blocking(move || build(&*buffer, &lane, id, cursor, &tmp))
            .await
            .map_err(|e| TurnError::Internal(e.to_string()))?
    }

    async fn put(&self, progress: &mut Progress) -> Result<Turn, TurnError> {
        let built = progress.pending.as_ref().expect("BUG: nothing to put");
        let key = FileKey { database: progress.key.clone(), level: Level::RAW, range: built.range };
        let put = self
            .destination()
            .put(&key, built.body.clone(), built.meta, &self.shared.abort)
            .await
            .map_err(TurnError::Destination)?;
        let turn = Turn { more: built.more, created: (put == Put::Created).then_some(built.bytes) };
        self.advance(progress, built.range.max())?;
        progress.pending = None;
        Ok(turn)
    }

    fn advance(&self, progress: &mut Progress, txid: Txid) -> Result<(), TurnError> {
        self.buffer().set_cursor(self.destination().name(), progress.id, txid)?;
        progress.cursor = Some(txid);
        self.shared.board.post_copy(self.lane, progress.id, progress.cursor);
        Ok(())
    }

    async fn copy_from_sibling(
        &self,
        progress: &mut Progress,
        reason: BufferError,
    ) -> Result<Turn, TurnError> {
        if progress.chain.is_empty() {
            progress.chain =
                catchup::plan(self.shared, self.lane, &progress.key, progress.cursor, reason).await?;
        }
        let step = progress.chain.pop_front().expect("BUG: an empty plan is an error");
        let copied = catchup::copy(self.shared, self.lane, &progress.key, &step).await;
        if copied.is_err() {
            progress.chain.clear();
        }
        let created = copied?;
        self.advance(progress, step.file.range.max())?;
        Ok(Turn { more: true, created })
    }

    /// Looks, once, at what the destination holds and goes on from there.
    async fn settle(&self, progress: &mut Progress) -> Result<(), TurnError> {
        let Look::At { levels, files } = &mut progress.look else { return Ok(()) };
        while let Some(level) = levels.last() {
            let found = self.destination().list(&progress.key, *level, &self.shared.abort).await;
            files.extend(found.map_err(TurnError::Destination)?);
            levels.pop();
        }
        let reach = coverage::reach(files).cloned();
        if let Some(last) = &reach {
            self.same_history(progress, last).await?;
        }
        let found = reach.map(|file| file.range.max());
        if found < progress.cursor {
            let (database, destination) = (&progress.key, self.destination().name());
            tracing::warn!(%database, %destination, ?found, expected = ?progress.cursor, "files are missing at a destination, they are put again");
        }
        match found {
            Some(txid) => self.advance(progress, txid)?,
            None => {
                progress.cursor = None;
                self.shared.board.post_copy(self.lane, progress.id, None);
            }
        }
        progress.look = Look::Done;
        Ok(())
    }

    /// Refuses to go on behind files that are not of our history.
    async fn same_history(&self, progress: &Progress, last: &Listed) -> Result<(), TurnError> {
        let position = self.buffer().find(&progress.key).and_then(|held| held.position);
        let txid = last.range.max();
        let Some(position) = position.filter(|pos| pos.txid >= txid) else {
            let held = position.map_or(0, |pos| pos.txid.get());
            return Err(TurnError::History(format!(
                "its files reach to {}, the hub's to {held}",
                txid.get()
            )));
        };
        let Some(expected) = self.checksum_at(progress.id, txid, position)? else {
            // The transaction has left the buffer; our own record of the cursor is all there is.
            return Ok(());
        };
        let key = FileKey { database: progress.key.clone(), level: last.level, range: last.range };
        let start = self.destination().read_start(&key, HEADER_BYTES, &self.shared.abort).await;
        let header = Header::decode(&start.map_err(TurnError::Destination)?)
            .map_err(|e| TurnError::History(format!("{}: {e}", last.range)))?;
        match header.provenance {
            Some(provenance) if provenance.post == expected => Ok(()),
            Some(provenance) => Err(TurnError::History(format!(
                "at {} its checksum is {}, the hub's {expected}",
                txid.get(),
                provenance.post
            ))),
            None => Err(TurnError::History(format!("{} was not written by walhub", last.range))),
        }
    }

    /// Database checksum of our history at `txid`; `None` when the buffer no longer knows.
    fn checksum_at(&self, id: DatabaseId, txid: Txid, position: Pos) -> Result<Option<Checksum>, TurnError> {
        if position.txid == txid {
            return Ok(Some(position.checksum));
        }
        let next = self.buffer().list(id, Some(txid), 1)?.into_iter().next();
        if let Some(next) = next.filter(|next| next.meta.range.follows(Some(txid))) {
            return Ok(next.meta.pre);
        }
        let oldest = self.buffer().list(id, None, 1)?.into_iter().next();
        match oldest {
            Some(oldest) if oldest.meta.range.min() <= txid => Err(TurnError::History(format!(
                "its files end at {}, in the middle of a segment of ours",
                txid.get()
            ))),
            _ => Ok(None),
        }
    }
}
