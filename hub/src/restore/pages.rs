//! The pages of a database as of a point, each once: files newest first, and of each page the first version that comes.

use super::Restores;
use futures_util::stream::{self, BoxStream, StreamExt};
use std::io::Read;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use walhub_common::ltx::{Decoder, LtxError, squeeze};
use walhub_common::restore::feed::{self, Feed};
use walhub_common::restore::frames::{Frames, FramesBuilder};
use walhub_common::{DatabaseKey, PageSet};
use walhub_store::destinations::DestinationError;
use walhub_store::restore::{DynSource, Piece, Plan, Prepared};

/// Bytes of blocks in one message, at most.
const FRAMES_BYTES: usize = 1024 * 1024;
/// Pages in one message, at most.
const FRAMES_PAGES: u32 = 4096;
/// Messages made ahead.
const AHEAD: usize = 4;

/// Why the pages broke off.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// A source failed.
    #[error(transparent)]
    Source(#[from] DestinationError),
    /// A file is damaged.
    #[error("{name}: {source}")]
    File {
        /// Which.
        name: String,
        /// The cause.
        source: LtxError,
    },
    /// The files do not bring every page.
    #[error("page {0} is in none of the files: the history is damaged, restore from another destination")]
    MissingPage(u32),
    /// A task of the hub failed.
    #[error("internal error of the hub: {0}")]
    Internal(String),
}

impl Restores {
    /// The pages of a plan that are not in `had`, each once. With `all`, every page of the database must come.
    pub fn pages(
        &self,
        sources: &[DynSource],
        database: &DatabaseKey,
        prepared: &Prepared,
        had: PageSet,
        all: bool,
    ) -> BoxStream<'static, Result<Frames, PagesError>> {
        let newest_first =
            Plan { files: prepared.plan.files.iter().rev().cloned().collect(), ..prepared.plan };
        let mut pieces = self.fetch(sources, database, &newest_first);
        let (feeder, files) = feed::channel();
        let (out, frames) = mpsc::channel(AHEAD);
        let read = tokio::task::spawn_blocking(move || {
            let done = read(files, had, all, &out);
            if let Err(error) = done {
                let _ = out.blocking_send(Err(error));
            }
        });
        let feeding = async move {
            while let Some(piece) = pieces.next().await {
                let fed = match piece {
                    Ok(Piece::Start(file)) => {
                        feeder.file(format!("file {}.ltx of {}", file.range, file.source)).await
                    }
                    Ok(Piece::Data(data)) => feeder.data(data).await,
                    Err(error) => return Some(Err(error.into())),
                };
                if fed.is_err() {
                    break;
                }
            }
            let _ = feeder.finish(None).await;
            read.await.err().map(|error| Err(PagesError::Internal(error.to_string())))
        };
        let fed = stream::once(feeding).filter_map(std::future::ready);
        stream::select(ReceiverStream::new(frames), fed).boxed()
    }
}

fn read(
    mut files: Feed,
    mut had: PageSet,
    all: bool,
    out: &mpsc::Sender<Result<Frames, PagesError>>,
) -> Result<(), PagesError> {
    let mut commit = had.pages();
    let mut page_size = None;
    let mut page = Vec::new();
    let mut builder = FramesBuilder::default();
    let mut count = 0;
    let stream = |e| PagesError::File { name: "the stream of files".into(), source: LtxError::Io(e) };
    while let Some(file) = files.next_file().map_err(stream)? {
        let name = file.name().to_owned();
        let fault = |source| PagesError::File { name: name.clone(), source };
        let mut file = Decoder::new(Box::new(file) as Box<dyn Read + '_>).map_err(fault)?;
        let header = *file.header();
        if *page_size.get_or_insert(header.page_size) != header.page_size {
            break;
        }
        commit = commit.min(header.commit);
        while let Some(pgno) = file.next_page(&mut page).map_err(fault)? {
            if pgno.get() > commit || !had.insert(pgno) {
                continue;
            }
            match file.block() {
                Some(block) => builder.push(pgno, block),
                None => builder.push(pgno, &squeeze(&page)),
            }
            count += 1;
            if count == FRAMES_PAGES || builder.bytes() + page.len() * 2 > FRAMES_BYTES {
                count = 0;
                if out.blocking_send(Ok(builder.take())).is_err() {
                    return Ok(());
                }
            }
        }
        file.finish().map_err(fault)?;
    }
    if !builder.is_empty() {
        let _ = out.blocking_send(Ok(builder.take()));
    }
    let lock = page_size.map(|size| size.lock_page());
    if let Some(lock) = lock {
        had.insert(lock);
    }
    match had.gaps().next() {
        Some(gap) if all => Err(PagesError::MissingPage(*gap.start())),
        _ => Ok(()),
    }
}
