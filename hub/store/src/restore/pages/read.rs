//! The reads of a restore: whole small files, headers, indices, ranges, and large files from front to back. What fails in
//! passing is tried again.

use super::Ask;
use super::mapper::Work;
use super::span::{Span, Spans};
use crate::destinations::error::{Context, Operation};
use crate::destinations::{DestinationError, Fault, FileKey};
use crate::restore::fetch::{Piece, fetch};
use crate::restore::plan::{Plan, PlannedFile};
use crate::restore::source::DynSource;
use crate::restore::times::check_header;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use walhub_common::DatabaseKey;
use walhub_common::backoff::{Backoff, Class};
use walhub_common::ltx::page_index::{self, PageIndex, TAIL_BYTES, block_of};
use walhub_common::ltx::{Decoder, HEADER_BYTES, Header, LtxError, squeeze};
use walhub_common::restore::feed::{self, Feed};
use walhub_common::restore::frames::{Block, Frames, FramesBuilder};

/// Tries of one read.
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// An index is mostly shorter than this part of its file.
const INDEX_SHARE: u64 = 256;
/// Bytes read first from the end of a large file.
const TAIL_READ: Range<u64> = 64 * 1024..16 * 1024 * 1024;
/// Bytes of blocks that a stream gives at once.
const STREAM_BYTES: usize = 1024 * 1024;

/// What came of a file, when its turn is near.
pub(super) enum Load {
    /// Whole, and found whole.
    Small(Header, Frames),
    /// Nothing yet.
    Large,
}

/// How a large file is read.
pub(super) enum Shape {
    Ranges(Spans),
    Stream(BoxStream<'static, Result<Frames, DestinationError>>),
}

/// Reads files of one database.
pub(super) struct Reader {
    sources: Vec<DynSource>,
    database: DatabaseKey,
    target: Header,
    verify: bool,
    span_bytes: u64,
    small_bytes: u64,
    cancel: CancellationToken,
}

impl Reader {
    pub(super) fn new(
        sources: &[DynSource],
        database: &DatabaseKey,
        target: Header,
        ask: &Ask,
        cancel: &CancellationToken,
    ) -> Reader {
        // Without a checksum to compare with in the end, each file must prove whole by itself.
        let verify = ask.verify || target.provenance.is_none();
        let (sources, database, cancel) = (sources.to_vec(), database.clone(), cancel.clone());
        Reader {
            sources,
            database,
            target,
            verify,
            span_bytes: ask.span_bytes.max(1),
            small_bytes: ask.small_bytes,
            cancel,
        }
    }

    /// Header of the file that ends at the point.
    pub(super) fn target(&self) -> &Header {
        &self.target
    }

    /// True for a file that is read whole.
    pub(super) fn is_small(&self, file: &PlannedFile) -> bool {
        file.size <= self.small_bytes
    }

    pub(super) fn corrupt(&self, file: &PlannedFile, text: String) -> DestinationError {
        self.fault(file, Fault::Corrupt(text))
    }

    fn fault(&self, file: &PlannedFile, fault: Fault) -> DestinationError {
        Context::new(&file.source, Operation::Open, file.key(&self.database)).error(fault)
    }

    fn source(&self, file: &PlannedFile) -> Result<(&DynSource, FileKey), DestinationError> {
        match self.sources.iter().find(|source| source.name() == &file.source) {
            Some(source) => Ok((source, file.key(&self.database))),
            None => Err(self.fault(file, Fault::Misconfigured("there is no such source".into()))),
        }
    }

    /// Exactly these bytes of a file.
    async fn read(&self, file: &PlannedFile, range: Range<u64>) -> Result<Bytes, DestinationError> {
        let (source, key) = self.source(file)?;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        for attempt in 1.. {
            let error = match source.read_at(&key, range.clone(), &self.cancel).await {
                Ok(bytes) if bytes.len() as u64 == range.end - range.start => return Ok(bytes),
                Ok(bytes) => {
                    let (at, found) = (range.start, bytes.len());
                    return Err(self.corrupt(file, format!("it ends {found} bytes behind byte {at}")));
                }
                Err(error) => error,
            };
            let passing = matches!(error.class(), Class::Transient | Class::Throttled | Class::Unknown);
            if !passing || attempt >= ATTEMPTS {
                return Err(error);
            }
            tracing::debug!(%error, "a read failed; it is tried again");
            tokio::select! {
                () = self.cancel.cancelled() => break,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
        Err(self.fault(file, Fault::Cancelled))
    }

    /// A small file, whole.
    pub(super) async fn small(&self, file: &PlannedFile) -> Result<Load, DestinationError> {
        let bytes = self.read(file, 0..file.size).await?;
        check_header(&bytes, file).map_err(|text| self.corrupt(file, text))?;
        // Every page is expanded for it: on all cores, and beside the tasks that read.
        let (header, frames) = tokio::task::spawn_blocking(move || whole(&bytes))
            .await
            .map_err(|error| self.fault(file, Fault::Unavailable(error.to_string())))?
            .map_err(|error| self.corrupt(file, error.to_string()))?;
        Ok(Load::Small(header, frames))
    }

    /// The header of a large file.
    pub(super) async fn header(&self, file: &PlannedFile) -> Result<Header, DestinationError> {
        let start = self.read(file, 0..HEADER_BYTES as u64).await?;
        check_header(&start, file).map_err(|text| self.corrupt(file, text))
    }

    /// Reads a large file to its end where it must prove whole before it is used.
    pub(super) async fn check(&self, file: &PlannedFile) -> Result<(), DestinationError> {
        if self.verify {
            let mut frames = self.stream(file, false);
            while let Some(frames) = frames.next().await {
                frames?;
            }
        }
        Ok(())
    }

    /// How a large file is read: by ranges when its source can do that.
    pub(super) async fn shape(&self, file: &PlannedFile) -> Result<Shape, DestinationError> {
        if !self.source(file)?.0.ranged() {
            return Ok(Shape::Stream(self.stream(file, true)));
        }
        let first = (file.size / INDEX_SHARE).clamp(TAIL_READ.start, TAIL_READ.end).min(file.size);
        let tail = self.read(file, file.size - first..file.size).await?;
        let bytes = page_index::index_bytes(&tail, file.size);
        let bytes = bytes.map_err(|error| self.corrupt(file, error.to_string()))?;
        let end = file.size - TAIL_BYTES as u64;
        let index = match (first - TAIL_BYTES as u64).checked_sub(bytes) {
            Some(at) => tail.slice(at as usize..tail.len() - TAIL_BYTES),
            None => self.read(file, end - bytes..end).await?,
        };
        let index = PageIndex::new(index, file.size, self.target.page_size);
        Ok(Shape::Ranges(Spans::new(index.entries(), self.span_bytes)))
    }

    /// Pages of a large file, read from front to back; verified only when the stream has ended. Without `pages` it
    /// gives nothing else than the verdict.
    fn stream(
        &self,
        file: &PlannedFile,
        pages: bool,
    ) -> BoxStream<'static, Result<Frames, DestinationError>> {
        let one = Plan { files: vec![file.clone()], reached: file.range.max() };
        let mut pieces = fetch(&self.sources, &self.database, &one, &self.cancel);
        let (feeder, feed) = feed::channel();
        let (out, frames) = mpsc::channel(2);
        let context = Context::new(&file.source, Operation::Open, file.key(&self.database));
        let corrupt = context.clone();
        let reading = tokio::task::spawn_blocking(move || {
            if let Err(error) = front_to_back(feed, pages, &out) {
                let _ = out.blocking_send(Err(corrupt.error(Fault::Corrupt(error.to_string()))));
            }
        });
        let feeding = async move {
            while let Some(piece) = pieces.next().await {
                let fed = match piece {
                    Ok(Piece::Start(_)) => feeder.file("").await,
                    Ok(Piece::Data(data)) => feeder.data(data).await,
                    Err(error) => return Some(Err(error)),
                };
                if fed.is_err() {
                    break;
                }
            }
            let _ = feeder.finish(None).await;
            let ended = reading.await.err();
            ended.map(|error| Err(context.error(Fault::Unavailable(error.to_string()))))
        };
        let frames = stream::unfold(frames, |mut frames| async { Some((frames.recv().await?, frames)) });
        let fed = stream::once(feeding).filter_map(std::future::ready);
        // The feeding first: when it fails, its reason is the better one.
        stream::select_with_strategy(fed, frames, |(): &mut ()| stream::PollNext::Left).boxed()
    }

    /// Does a piece of work.
    pub(super) async fn carry_out(&self, work: Work) -> Result<Frames, Box<(PlannedFile, DestinationError)>> {
        match work {
            Work::Ready(frames) => Ok(frames),
            Work::Failed(failure) => Err(failure),
            Work::Read(file, span) => {
                let read = self.span(&file, &span).await;
                read.map_err(|error| Box::new((PlannedFile::clone(&file), error)))
            }
        }
    }

    async fn span(&self, file: &PlannedFile, span: &Span) -> Result<Frames, DestinationError> {
        let range = span.range();
        let data = self.read(file, range.clone()).await?;
        let cut = cut(&data, span, range.start, self.target.page_size);
        cut.map_err(|error| self.corrupt(file, error.to_string()))
    }
}

/// The pages of a span in the bytes that were read for it, which begin at byte `start` of the file.
fn cut(
    data: &Bytes,
    span: &Span,
    start: u64,
    page_size: walhub_common::PageSize,
) -> Result<Frames, LtxError> {
    let mut blocks = Vec::with_capacity(span.entries.len());
    let mut anew: Option<FramesBuilder> = None;
    for entry in &span.entries {
        let at = (entry.offset - start) as usize;
        let bytes = data.get(at..at + entry.bytes as usize).ok_or(LtxError::Truncated)?;
        match (block_of(bytes, entry.pgno, page_size)?, &mut anew) {
            (Cow::Borrowed(block), None) => {
                let skipped = bytes.len() - block.len();
                blocks.push(Block { pgno: entry.pgno, at: (at + skipped) as u32, bytes: block.len() as u32 });
            }
            (block, Some(anew)) => anew.push(entry.pgno, &block),
            (block, None) => {
                // The old form: what was found in place is copied, too.
                let mut builder = FramesBuilder::default();
                let found = Frames { blocks: std::mem::take(&mut blocks), data: data.clone() };
                found.iter().for_each(|(pgno, block)| builder.push(pgno, block));
                builder.push(entry.pgno, &block);
                anew = Some(builder);
            }
        }
    }
    Ok(anew.map_or_else(|| Frames { blocks, data: data.clone() }, |mut anew| anew.take()))
}

/// All pages of a file in memory, which proves whole.
fn whole(bytes: &[u8]) -> Result<(Header, Frames), LtxError> {
    let mut file = Decoder::new(bytes)?;
    let (mut builder, mut page) = (FramesBuilder::default(), Vec::new());
    while let Some(pgno) = file.next_page(&mut page)? {
        match file.block() {
            Some(block) => builder.push(pgno, block),
            None => builder.push(pgno, &squeeze(&page)),
        }
    }
    file.finish()?;
    Ok((*file.header(), builder.take()))
}

/// Ends quietly when nobody listens; a stream that breaks is for the feeding side to explain.
fn front_to_back(
    mut feed: Feed,
    pages: bool,
    out: &mpsc::Sender<Result<Frames, DestinationError>>,
) -> Result<(), LtxError> {
    let Ok(Some(file)) = feed.next_file() else { return Ok(()) };
    let broke = |error: LtxError| if matches!(error, LtxError::Io(_)) { Ok(()) } else { Err(error) };
    let read = || -> Result<(), LtxError> {
        let mut file = Decoder::new(file)?;
        let (mut builder, mut page) = (FramesBuilder::default(), Vec::new());
        while let Some(pgno) = file.next_page(&mut page)? {
            match file.block() {
                _ if !pages => {}
                Some(block) => builder.push(pgno, block),
                None => builder.push(pgno, &squeeze(&page)),
            }
            if builder.bytes() >= STREAM_BYTES && out.blocking_send(Ok(builder.take())).is_err() {
                return Ok(());
            }
        }
        file.finish()?;
        if !builder.is_empty() {
            let _ = out.blocking_send(Ok(builder.take()));
        }
        Ok(())
    };
    read().or_else(broke)
}
