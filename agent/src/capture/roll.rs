//! ROLL FORWARD: the page map, and nothing else, becomes the one of a position that the hub holds. The hub sends page
//! checksums; the page map is adopted only when they give the database checksum of that position.
//!
//! Afterwards the page map says what the hub holds, not what the file holds: a heal must follow.

use super::error::CaptureError;
use super::ledger::{Ledger, Point};
use super::{Capture, Standing, Tracked};
use crate::page_map::{Builder, Change};
use std::io;
use walhub_common::{PageSize, Pos, Txid};

/// Page checksums that the hub holds at a position.
pub struct HubPages<'a> {
    /// The position.
    pub position: Pos,
    /// Bytes per page.
    pub page_size: PageSize,
    /// Database size in pages.
    pub commit: u32,
    /// `None`: every page follows. Otherwise at least those changed after this transaction, at which the page map stands;
    /// every page when the page size is another one.
    pub after: Option<Txid>,
    /// The pages, ascending, in batches.
    pub batches: &'a mut dyn Iterator<Item = io::Result<Vec<Change>>>,
}

impl Capture {
    /// Brings the page map to what the hub holds. On an error it stays as it was.
    ///
    /// A whole table is taken batch by batch into a new map; of a part all changes are held in memory until they are
    /// verified.
    pub fn roll_forward(&mut self, to: HubPages<'_>) -> Result<(), CaptureError> {
        let result = self.try_roll_forward(to);
        self.settle(result)
    }

    fn try_roll_forward(&mut self, to: HubPages<'_>) -> Result<(), CaptureError> {
        let HubPages { position, page_size, commit, after, batches } = to;
        let before = self.tracked.as_ref().map(|t| t.position);
        let refuse = |reason: String| CaptureError::RollForward { position: before.map(|p| p.txid), reason };
        if Some(position.txid) <= before.map(|p| p.txid) {
            return Err(refuse(format!("the page map is at {position} or past it already")));
        }
        let mut batches = Ascending { batches, last: 0, page_size, commit };
        let mut next = || batches.next().map_err(&refuse);
        let part = after.filter(|_| self.tracked.as_ref().is_some_and(|t| t.map.page_size() == page_size));
        let map = match (&mut self.tracked, part) {
            (_, None) => {
                let mut map = Builder::new(page_size, commit, self.map_room());
                while let Some(batch) = next()? {
                    batch.into_iter().for_each(|(_, checksum)| map.push(checksum));
                }
                let map = map.finish(position.txid).map_err(|missing| refuse(missing.to_string()))?;
                if map.checksum() != position.checksum {
                    return Err(refuse(format!("the pages give {}, not {position}", map.checksum())));
                }
                Some(map)
            }
            (Some(tracked), Some(after)) if tracked.position.txid == after => {
                let mut changes = Vec::new();
                while let Some(batch) = next()? {
                    changes.extend(batch);
                }
                let checksum = tracked.map.preview(&changes, commit).map_err(CaptureError::Staged)?;
                if checksum != position.checksum {
                    return Err(CaptureError::OtherHistory { ours: tracked.position, hub: position });
                }
                let applied = tracked.map.apply(&changes, commit, position.txid);
                applied.map_err(|unapplied| refuse(unapplied.to_string()))?;
                None
            }
            (_, Some(after)) => return Err(refuse(format!("the hub sent what follows {after}"))),
        };
        self.let_go();
        let ledger = Ledger::new(Point { position, wal: None, commit });
        self.standing = Standing::Gap;
        match (map, &mut self.tracked) {
            (Some(map), tracked) => *tracked = Some(Tracked { map, position, ledger, rolled: true }),
            (None, Some(tracked)) => {
                (tracked.position, tracked.ledger, tracked.rolled) = (position, ledger, true);
            }
            (None, None) => unreachable!("BUG: a part was applied to nothing"),
        }
        Ok(())
    }
}

/// Batches as they come from the hub, checked: pages ascend, none lies outside of the database or is the lock page.
struct Ascending<'a> {
    batches: &'a mut dyn Iterator<Item = io::Result<Vec<Change>>>,
    last: u32,
    page_size: PageSize,
    commit: u32,
}

impl Ascending<'_> {
    fn next(&mut self) -> Result<Option<Vec<Change>>, String> {
        let Some(batch) = self.batches.next() else { return Ok(None) };
        let batch = batch.map_err(|error| error.to_string())?;
        for (pgno, _) in &batch {
            let page = pgno.get();
            if page <= self.last || page > self.commit || *pgno == self.page_size.lock_page() {
                return Err(format!("the hub sent page {page} of {} after {}", self.commit, self.last));
            }
            self.last = page;
        }
        Ok(Some(batch))
    }
}
