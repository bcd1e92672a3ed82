//! Decides, file after file from the newest on, which pages are taken from where.

use super::read::{Load, Reader, Shape};
use super::span::{Span, Spans};
use super::{SMALL_AHEAD, SMALL_AHEAD_BYTES};
use crate::destinations::DestinationError;
use crate::restore::plan::{Plan, PlannedFile};
use futures_util::stream::{self, BoxStream, StreamExt};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use walhub_common::PageSet;
use walhub_common::restore::frames::Frames;

/// What is to be done next.
pub(super) enum Work {
    /// Pages that are here.
    Ready(Frames),
    /// Pages to be read from a large file.
    Read(Arc<PlannedFile>, Span),
    /// A file that could not be read.
    Failed(Box<(PlannedFile, DestinationError)>),
}

/// With the room that a small file occupies until it is taken.
type Loads = BoxStream<'static, (PlannedFile, Result<Load, DestinationError>, Option<OwnedSemaphorePermit>)>;

/// The decisions of one pass over a plan.
pub(super) struct Mapper {
    reader: Arc<Reader>,
    loads: Loads,
    /// Pages that somebody has, or that are on their way.
    claimed: PageSet,
    /// The smallest the database was since: pages behind it are of no older file.
    limit: u32,
    now: Now,
    stop: CancellationToken,
}

/// The large file that pages are taken from.
enum Now {
    Nothing,
    Ranges(Arc<PlannedFile>, Spans),
    Stream(PlannedFile, BoxStream<'static, Result<Frames, DestinationError>>),
    Over,
}

impl Mapper {
    /// Over the files of `plan`. Ends early when `stop` is cancelled.
    pub(super) fn new(reader: Arc<Reader>, plan: &Plan, had: PageSet, stop: CancellationToken) -> Mapper {
        let files: Vec<PlannedFile> = plan.files.iter().rev().cloned().collect();
        let loader = reader.clone();
        let room = Arc::new(Semaphore::new(SMALL_AHEAD_BYTES as usize));
        let loads = stream::iter(files).map(move |file| {
            let (reader, room) = (loader.clone(), room.clone());
            async move {
                // The index of a large one is read when its turn comes: one at a time in memory.
                if !reader.is_small(&file) {
                    return (file, Ok(Load::Large), None);
                }
                // Asked for in the order of the files, so that the one waited for always has its room.
                let bytes = file.size.min(SMALL_AHEAD_BYTES) as u32;
                let room = room.acquire_many_owned(bytes).await.ok();
                let load = reader.small(&file).await;
                (file, load, room)
            }
        });
        let limit = reader.target().commit;
        let loads = loads.buffered(SMALL_AHEAD).boxed();
        Mapper { reader, loads, claimed: had, limit, now: Now::Nothing, stop }
    }

    /// The next piece of work; `None` when all pages have their place, or the files are at their end.
    pub(super) async fn next(&mut self) -> Option<Work> {
        loop {
            if self.stop.is_cancelled() {
                return None;
            }
            match &mut self.now {
                Now::Over => return None,
                Now::Ranges(file, spans) => match spans.next(&mut self.claimed, self.limit) {
                    Ok(Some(span)) => return Some(Work::Read(file.clone(), span)),
                    Ok(None) => self.now = Now::Nothing,
                    Err(error) => {
                        let file = PlannedFile::clone(file);
                        let error = self.reader.corrupt(&file, error.to_string());
                        return Some(self.failed(file, error));
                    }
                },
                Now::Stream(file, frames) => match frames.next().await {
                    Some(Ok(frames)) => {
                        let frames = self.claim(frames);
                        if !frames.blocks.is_empty() {
                            return Some(Work::Ready(frames));
                        }
                    }
                    Some(Err(error)) => {
                        let file = file.clone();
                        return Some(self.failed(file, error));
                    }
                    None => self.now = Now::Nothing,
                },
                Now::Nothing if self.claimed.len() == self.claimed.pages() => self.now = Now::Over,
                Now::Nothing => {
                    let (file, load, _room) = self.loads.next().await?;
                    match self.take(&file, load).await {
                        Ok(Some(frames)) => return Some(Work::Ready(frames)),
                        Ok(None) => {}
                        Err(error) => return Some(self.failed(file, error)),
                    }
                }
            }
        }
    }

    /// Takes what a small file has; begins with a large one.
    async fn take(
        &mut self,
        file: &PlannedFile,
        load: Result<Load, DestinationError>,
    ) -> Result<Option<Frames>, DestinationError> {
        let header = match load? {
            Load::Small(header, frames) => {
                return Ok(self.fits(&header).then(|| self.claim(frames)));
            }
            Load::Large => self.reader.header(file).await?,
        };
        if self.fits(&header) {
            self.reader.check(file).await?;
            self.now = match self.reader.shape(file).await? {
                Shape::Ranges(spans) => Now::Ranges(Arc::new(file.clone()), spans),
                Shape::Stream(frames) => Now::Stream(file.clone(), frames),
            };
        }
        Ok(None)
    }

    /// Notes what a file says about the database's size. Behind a change of the page size nothing is of use.
    fn fits(&mut self, header: &walhub_common::ltx::Header) -> bool {
        let fits = header.page_size == self.reader.target().page_size;
        if fits {
            self.limit = self.limit.min(header.commit);
        } else {
            self.now = Now::Over;
        }
        fits
    }

    fn claim(&mut self, mut frames: Frames) -> Frames {
        let (limit, claimed) = (self.limit, &mut self.claimed);
        frames.blocks.retain(|block| block.pgno.get() <= limit && claimed.insert(block.pgno));
        frames
    }

    fn failed(&mut self, file: PlannedFile, error: DestinationError) -> Work {
        self.now = Now::Over;
        Work::Failed(Box::new((file, error)))
    }
}
