//! The first snapshot: one segment for a small database, parts for a large one.
//!
//! Parts outlive links and both programs: what the hub keeps is asked for by page checksums, and only pages that differ are
//! sent. Walks over the live file go on until one gets all the way around; see [`crate::capture::Capture::stage`].

use super::drive::{Driver, End, failed};
use super::fetch::fetch_staged;
use super::follower::{Follower, Target};
use super::rest::Pacer;
use super::sink::{Kind, LinkSink};
use super::steps::unavailable;
use super::{Desk, Report};
use crate::capture::{CaptureError, Parts, SegmentMeta, Sink, Staged, Walk};
use crate::ship::window::{Entry, Keep};
use bytes::Bytes;
use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use walhub_common::DatabaseName;
use walhub_common::limits::MAX_PART_BYTES;

/// A database of more page bytes is sent in parts.
pub const PARTS_ABOVE: u64 = 8 * MAX_PART_BYTES as u64;

impl Driver<'_> {
    /// Everything, to a hub that has nothing.
    pub(super) async fn first_snapshot(&mut self, to: &Target) -> Result<(), End> {
        let bytes = self.blocking(|f| f.capture.image_bytes()).await?.map_err(failed)?;
        let (held, images) = (self.staging.take(), std::mem::take(&mut self.images));
        if held.is_none() && bytes <= self.db.shared.parts_above {
            return self.delta(None, to).await;
        }
        let _turn = self.turn().await;
        let had = self.home().capture.position().is_some();
        let db = self.db;
        let folder = db.shared.state.database(&db.name, &db.path).and_then(|f| Staged::create(&f));
        let mut staged = folder.map_err(|e| failed(CaptureError::Staged(e)))?;
        let adopted = held.is_some_and(|held| held.adopted);
        if adopted || (held.is_none() && images) {
            staged = self.match_with_hub(staged, held, to).await?;
        } else if let Some(held) = held {
            staged.resume(held.page_size, held.next_part);
            let asked = fetch_staged(to.link.channel.clone(), (&db.shared.agent, &db.name)).await;
            let (fetch, pages) = asked.map_err(unavailable)?;
            let filling = self.blocking(move |_| {
                pages.read_staged(held.page_size, |batch| staged.hold(batch))?;
                staged.go_on().map(|()| staged)
            });
            let (fetched, filled) = tokio::join!(fetch.run(), filling);
            let filled = filled?;
            self.look(&to.link)?;
            fetched.map_err(unavailable)?;
            staged = filled.map_err(|e| unavailable(e.to_string()))?;
        }
        tracing::info!(database = %db.name, bytes, staged_pages = staged.pages(), "sending a first snapshot in parts");
        let meta = self.walk_around(staged, to).await?;
        if had {
            self.tell_joined(meta.range);
        }
        self.hub = Some(meta.position());
        self.account();
        self.until_stored(meta, to).await?;
        db.report.snapshot_done();
        tracing::info!(database = %db.name, "the hub has the first snapshot");
        Ok(())
    }

    /// Walks until the last file was sent.
    async fn walk_around(&mut self, mut staged: Staged, to: &Target) -> Result<SegmentMeta, End> {
        loop {
            let context = self.context(to);
            let walking = self.blocking(move |f| {
                let walked = f.walk(&mut staged, &context);
                (staged, walked)
            });
            let walked;
            (staged, walked) = walking.await?;
            if self.db.desk.wants_pause() {
                // Ends here; what was staged is found again afterwards.
                self.answer_calls_away().await?;
            }
            match self.sent(walked, &to.link)? {
                Walk::Complete(meta) => return Ok(meta),
                Walk::LogFull => {
                    let shortened = self.blocking(|f| f.capture.shorten_log()).await?.map_err(failed)?;
                    tracing::debug!(database = %self.db.name, shortened, "checkpointed during a first snapshot");
                }
            }
            // Also learns that the file was replaced, or that the task must stop.
            self.look(&to.link)?;
        }
    }

    /// What a pass over the file needs.
    pub(super) fn context(&self, to: &Target) -> Context {
        let db = self.db;
        Context {
            to: to.clone(),
            name: db.name.clone(),
            report: db.report.clone(),
            desk: db.desk.clone(),
            rate: db.shared.snapshot_rate,
        }
    }

    /// The hub puts the parts together and takes nothing else meanwhile; the log is looked after.
    async fn until_stored(&mut self, meta: SegmentMeta, to: &Target) -> Result<(), End> {
        while self.buffered < Some(meta.range.max()) {
            self.mail_on(&to.link).await?;
            self.limit_wal(false).await?;
        }
        Ok(())
    }
}

/// What a walk needs beside the file.
pub(super) struct Context {
    pub(super) to: Target,
    pub(super) name: DatabaseName,
    pub(super) report: Arc<Report>,
    pub(super) desk: Arc<Desk>,
    /// Bytes read per second.
    pub(super) rate: Option<u64>,
}

impl Follower {
    /// One walk of a first snapshot.
    fn walk(&mut self, staged: &mut Staged, context: &Context) -> Result<Walk, CaptureError> {
        let (waited, sent) = (Cell::new(Duration::ZERO), Cell::new(0));
        let to = &context.to;
        let mut parts = LinkParts { to, waited: &waited, sent: &sent, sink: None };
        let mut pacer = Pacer::new(context, &waited, &sent);
        let walk = self.capture.stage(staged, &mut parts, &mut pacer)?;
        if let Walk::Complete(meta) = &walk {
            self.window.push(Entry::new(*meta, Keep::nothing(&to.budget)));
        }
        Ok(walk)
    }
}

/// Sends the files of a first snapshot, and measures how long the link made it wait.
struct LinkParts<'a> {
    to: &'a Target,
    waited: &'a Cell<Duration>,
    sent: &'a Cell<u64>,
    sink: Option<LinkSink<'a>>,
}

impl Parts for LinkParts<'_> {
    fn part(&mut self) -> &mut dyn Sink {
        self.sink = Some(LinkSink::staged(self.to, Kind::Part));
        self
    }

    fn last(&mut self) -> &mut dyn Sink {
        self.sink = Some(LinkSink::staged(self.to, Kind::Last));
        self
    }
}

impl Sink for LinkParts<'_> {
    fn begin(&mut self, meta: &SegmentMeta) -> io::Result<()> {
        self.sink.as_mut().ok_or_else(|| io::Error::other("no file was begun"))?.begin(meta)
    }

    fn chunk(&mut self, data: Bytes, last: bool) -> io::Result<()> {
        self.sent.set(self.sent.get() + data.len() as u64);
        let begun = Instant::now();
        let sink = self.sink.as_mut().ok_or_else(|| io::Error::other("no file was begun"))?;
        let sent = sink.chunk(data, last);
        self.waited.set(self.waited.get() + begun.elapsed());
        sent
    }
}
