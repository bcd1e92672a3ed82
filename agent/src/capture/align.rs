//! ALIGN: snapshot, delta and heal. Whatever was missed is found by comparing the live pages with the page
//! map, so nothing but the difference travels.
//!
//! Every segment made here is read from one [`Image`] in two passes (checksums, then pages), streamed, and booked only
//! after the sink took it to its end.

use super::attach::cursor_at;
use super::error::{Broken, CaptureError};
use super::header::Header;
use super::image::Image;
use super::ledger::{Ledger, Point};
use super::segment::{self, Origin, SegmentMeta, Sink};
use super::tail::same;
use super::{Capture, Cursor, Standing, Tracked};
use crate::page_map::store::Anchor;
use crate::page_map::{Builder, Change, PageMap, Room};
use std::cell::Cell;
use std::io;
use walhub_common::clock::now_ms;
use walhub_common::{Checksum, PageSize, Pos, Txid, TxidRange};

/// The live state beside the page map.
struct Diff {
    header: Header,
    page_size: PageSize,
    commit: u32,
    differs: Differs,
}

/// What differs from the page map.
enum Differs {
    /// These pages, with their live checksums.
    Pages(Vec<Change>),
    /// Everything: there is no page map, or one of another page size. The new map, its pages not dated yet.
    Whole(Builder),
}

impl Capture {
    /// One segment with every page, from TXID 1.
    pub fn snapshot(&mut self, sink: &mut dyn Sink) -> Result<SegmentMeta, CaptureError> {
        self.delta_since(None, sink)
    }

    /// One segment that takes the hub from its position to the live state: the pages changed since, according to the page
    /// map, and those that changed while nobody looked. `None`: the hub has nothing, every page goes.
    ///
    /// Afterwards the capture is [`Standing::Aligned`] and its position is that of the segment.
    pub fn delta_since(
        &mut self,
        hub: Option<Pos>,
        sink: &mut dyn Sink,
    ) -> Result<SegmentMeta, CaptureError> {
        let result = self.try_delta(hub, sink);
        self.settle(result)
    }

    /// Compares the live state with the page map and sends the pages that differ as one transaction; `None` when none
    /// does. Afterwards the capture is [`Standing::Aligned`].
    pub fn heal(&mut self, sink: &mut dyn Sink) -> Result<Option<SegmentMeta>, CaptureError> {
        let result = self.try_heal(sink);
        self.settle(result)
    }

    fn try_heal(&mut self, sink: &mut dyn Sink) -> Result<Option<SegmentMeta>, CaptureError> {
        self.must_own_lock()?;
        if self.standing == Standing::Aligned {
            return Ok(None);
        }
        let Some(before) = self.tracked.as_ref().map(|t| t.position) else {
            return Err(CaptureError::NoPageMap);
        };
        let diff = self.diff()?;
        if !self.differs(&diff) {
            self.adopt(diff, before)?;
            return Ok(None);
        }
        let meta =
            self.send(sink, &diff, TxidRange::single(before.txid.next()), Some(before.checksum), None)?;
        self.adopt(diff, meta.position())?;
        Ok(Some(meta))
    }

    fn try_delta(&mut self, hub: Option<Pos>, sink: &mut dyn Sink) -> Result<SegmentMeta, CaptureError> {
        self.must_own_lock()?;
        let mut followed = None;
        if self.standing == Standing::Aligned {
            self.kept.clear();
            let header = self.header()?;
            followed = self.catch_up(&header)?.map(|_| header);
        }
        let position = self.tracked.as_ref().map(|t| t.position);
        let diff = match (followed, &self.tracked) {
            (Some(header), Some(tracked)) => Diff {
                header,
                page_size: tracked.map.page_size(),
                commit: tracked.map.commit(),
                differs: Differs::Pages(Vec::new()),
            },
            _ => self.diff()?,
        };
        let max = match position {
            None => Txid::FIRST,
            Some(at) if self.differs(&diff) => at.txid.next(),
            Some(at) => at.txid,
        };
        let range = match hub {
            Some(hub)
                if position.is_some_and(|at| hub.txid <= at.txid && (hub.txid < at.txid || hub == at)) =>
            {
                TxidRange::new(hub.txid.next(), max)
            }
            Some(_) => None,
            None => TxidRange::new(Txid::FIRST, max),
        };
        let range = range.ok_or(CaptureError::NoDelta { hub, position })?;
        let meta = self.send(sink, &diff, range, hub.map(|h| h.checksum), Some(hub.map(|h| h.txid)))?;
        if followed.is_some() {
            self.await_ack();
        } else {
            self.adopt(diff, meta.position())?;
        }
        Ok(meta)
    }

    /// The delta in flight stands for every transaction that was not acked.
    fn await_ack(&mut self) {
        if let (Some(tracked), Some(cursor)) = (&mut self.tracked, &self.cursor) {
            let wal = cursor.anchored.then_some(cursor.wal);
            let point = Point { position: tracked.position, wal, commit: tracked.map.commit() };
            tracked.ledger.handed_out(point, Vec::new());
        }
    }

    /// First pass: the live state and how it differs from the page map.
    fn diff(&mut self) -> Result<Diff, CaptureError> {
        let header = self.header()?;
        let image = Image::published(&self.files, &header)?;
        let (page_size, commit) = (image.page_size(), image.commit());
        let known = self.tracked.as_ref().map(|t| &t.map).filter(|m| m.page_size() == page_size);
        let mut differs = match known {
            Some(_) => Differs::Pages(Vec::new()),
            None => Differs::Whole(Builder::new(page_size, commit, self.map_room())),
        };
        image.read(image.all_pages(), |pgno, page| {
            let checksum = Checksum::of_page(pgno, page);
            match &mut differs {
                Differs::Whole(map) => map.push(checksum),
                Differs::Pages(changes) => {
                    let before = known.map(|map| map.get(pgno)).transpose().map_err(CaptureError::Staged)?;
                    if before.flatten() != Some(checksum) {
                        changes.push((pgno, checksum));
                    }
                }
            }
            Ok(())
        })?;
        Ok(Diff { header, page_size, commit, differs })
    }

    fn differs(&self, diff: &Diff) -> bool {
        let commit = self.tracked.as_ref().map(|t| t.map.commit());
        match &diff.differs {
            Differs::Whole(_) => true,
            Differs::Pages(changes) => !changes.is_empty() || commit != Some(diff.commit),
        }
    }

    /// Second pass: one segment with the pages that differ and, if asked, those changed after `also_since`.
    fn send(
        &self,
        sink: &mut dyn Sink,
        diff: &Diff,
        range: TxidRange,
        pre: Option<Checksum>,
        also_since: Option<Option<Txid>>,
    ) -> Result<SegmentMeta, CaptureError> {
        let (post, pages) = match (&diff.differs, &self.tracked) {
            (Differs::Whole(map), _) => (map.checksum(), Pages::Whole(map)),
            (Differs::Pages(changes), Some(tracked)) => {
                let older = also_since.map(|since| (&tracked.map, since));
                (
                    tracked.map.preview(changes, diff.commit).map_err(CaptureError::Staged)?,
                    Pages::Changed { changes, older, commit: diff.commit },
                )
            }
            (Differs::Pages(_), None) => unreachable!("BUG: compared with no page map"),
        };
        let meta = SegmentMeta {
            range,
            pre,
            post,
            page_size: diff.page_size,
            commit: diff.commit,
            agent_time_ms: now_ms(),
        };
        let image = Image::published(&self.files, &diff.header)?;
        segment::write(sink, &meta, Origin::IMAGE, self.options.compression, |put| {
            let failed = Cell::new(None);
            let unread = || io::Error::other("the checksums could be read once only");
            let mut expected = pages.iter(&failed);
            image.read(pages.iter(&failed).map(|(pgno, _)| pgno), |pgno, page| {
                let Some((_, checksum)) = expected.next() else {
                    return Err(CaptureError::Staged(failed.take().unwrap_or_else(unread)));
                };
                put(pgno, same(pgno, page, checksum)?)
            })?;
            failed.take().map_or(Ok(()), |error| Err(CaptureError::Staged(error)))
        })?;
        Ok(meta)
    }

    /// The page map becomes the live state, its place the header that was read; saved.
    fn adopt(&mut self, diff: Diff, position: Pos) -> Result<(), CaptureError> {
        let cursor = cursor_at(&self.files, &diff.header, diff.page_size)?;
        let untouched = !self.differs(&diff) && self.tracked.as_ref().is_some_and(|t| !t.rolled);
        let map = match (diff.differs, &mut self.tracked) {
            (Differs::Whole(map), _) => map.finish(position.txid).map_err(Broken::Growth)?,
            (Differs::Pages(changes), Some(tracked)) => {
                tracked.map.apply(&changes, diff.commit, position.txid)?;
                let room = Room::beside(&self.options.state_dir);
                std::mem::replace(&mut tracked.map, PageMap::new(diff.page_size, room))
            }
            (Differs::Pages(_), None) => unreachable!("BUG: compared with no page map"),
        };
        self.stand_at(map, cursor, position, untouched)
    }

    /// The page map is the state at `cursor`; saved. `untouched`: it is what is saved already.
    pub(super) fn stand_at(
        &mut self,
        map: PageMap,
        cursor: Cursor,
        position: Pos,
        untouched: bool,
    ) -> Result<(), CaptureError> {
        let wal = cursor.anchored.then_some(cursor.wal);
        self.kept.clear();
        self.pin = None;
        self.standing = Standing::Gap;
        let point = Point { position, wal, commit: map.commit() };
        let anchor = Anchor { lineage: self.lineage(), position: Some(position), wal };
        let saved = if untouched && self.store.anchor() == &anchor {
            Ok(())
        } else if untouched && self.store.anchor().position == Some(position) {
            self.store.reanchor(anchor)
        } else {
            self.store.rewrite(anchor, Some(&map))
        };
        self.tracked = Some(Tracked { map, position, ledger: Ledger::new(point), rolled: saved.is_err() });
        saved?;
        self.cursor = Some(cursor);
        self.standing = Standing::Aligned;
        self.upkeep.new_generation();
        Ok(())
    }
}

/// The pages of a segment made from an image, ascending, with their checksums.
enum Pages<'a> {
    /// Every page of a new map.
    Whole(&'a Builder),
    /// Those that differ, and those changed after a transaction.
    Changed { changes: &'a [Change], older: Option<(&'a PageMap, Option<Txid>)>, commit: u32 },
}

impl<'a> Pages<'a> {
    /// Ends early when the page map's scratch file cannot be read: `failed` says so.
    fn iter(&self, failed: &'a Cell<Option<io::Error>>) -> Box<dyn Iterator<Item = Change> + 'a> {
        let whole = move |change: io::Result<Change>| change.map_err(|e| failed.set(Some(e))).ok();
        match *self {
            Pages::Whole(map) => Box::new(map.pages().map_while(whole)),
            Pages::Changed { changes, older, commit } => {
                let older = older.into_iter().flat_map(|(map, since)| map.changed_since(since));
                let older = older.map_while(whole);
                Box::new(union(changes, older.take_while(move |(pgno, _)| pgno.get() <= commit)))
            }
        }
    }
}

/// Two ascending lists as one; where both have a page, the first counts.
fn union<'a>(
    first: &'a [Change],
    second: impl Iterator<Item = Change> + 'a,
) -> impl Iterator<Item = Change> + 'a {
    let mut first = first.iter().copied().peekable();
    let mut second = second.peekable();
    std::iter::from_fn(move || {
        let from_second = match (first.peek(), second.peek()) {
            (Some((a, _)), Some((b, _))) => b < a,
            (None, _) => true,
            (Some(_), None) => false,
        };
        if from_second {
            return second.next();
        }
        let next = first.next();
        if let Some((pgno, _)) = next {
            second.next_if(|(other, _)| *other == pgno);
        }
        next
    })
}
