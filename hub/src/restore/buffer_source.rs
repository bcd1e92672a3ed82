//! The hub's buffer as a source of restores: every segment it still holds is a raw LTX file.

use crate::buffer::{BufferError, DatabaseId, SegmentRef, WalBuffer};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, DestinationName, Level, Txid};
use walhub_store::destinations::error::{Context, Operation};
use walhub_store::destinations::{DestinationError, Fault, FileKey, Listed};
use walhub_store::restore::source::{BUFFER, Source, SourceName};

/// Segments listed at once.
const PAGE: usize = 4096;
/// Bytes read at once.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces read ahead.
const AHEAD: usize = 4;

#[derive(Clone)]
pub(crate) struct BufferSource {
    name: SourceName,
    buffer: Arc<dyn WalBuffer>,
}

impl fmt::Debug for BufferSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BufferSource")
    }
}

impl BufferSource {
    pub(crate) fn new(buffer: Arc<dyn WalBuffer>) -> Self {
        Self { name: DestinationName::new(BUFFER).expect("BUG: a plain name"), buffer }
    }

    /// The segment with exactly this range.
    fn segment(&self, key: &FileKey) -> Result<(DatabaseId, SegmentRef), Fault> {
        let held = self.buffer.find(&key.database).ok_or(Fault::NotFound)?;
        let before = Txid::new(key.range.min().get() - 1);
        let found = match self.buffer.read(held.id, before, 1) {
            Ok(found) => found,
            Err(BufferError::Trimmed { .. }) => return Err(Fault::NotFound),
            Err(error) => return Err(fault(&error)),
        };
        match found.into_iter().next() {
            Some(segment) if segment.meta.range == key.range && key.level == Level::RAW => {
                Ok((held.id, segment))
            }
            _ => Err(Fault::NotFound),
        }
    }

    /// A reader of the segment from `offset` on.
    fn reader(&self, key: &FileKey, offset: u64) -> Result<Box<dyn Read + Send>, Fault> {
        let (database, segment) = self.segment(key)?;
        let mut reader = self.buffer.open(database, &segment).map_err(|error| fault(&error))?;
        let skipped = io::copy(&mut reader.by_ref().take(offset), &mut io::sink());
        skipped.map_err(|error| Fault::Corrupt(error.to_string()))?;
        Ok(reader)
    }
}

fn fault(error: &BufferError) -> Fault {
    match error {
        BufferError::Corrupt { .. } => Fault::Corrupt(error.to_string()),
        _ => Fault::Unavailable(error.to_string()),
    }
}

#[async_trait]
impl Source for BufferSource {
    fn name(&self) -> &SourceName {
        &self.name
    }

    fn lists_exact_times(&self) -> bool {
        true
    }

    async fn list(&self, key: &DatabaseKey, _: &CancellationToken) -> Result<Vec<Listed>, DestinationError> {
        let Some(held) = self.buffer.find(key) else { return Ok(Vec::new()) };
        let (buffer, context) = (self.buffer.clone(), Context::new(&self.name, Operation::List, key));
        blocking(&context, move || {
            let mut files = Vec::new();
            let mut after = None;
            loop {
                let page = buffer.list(held.id, after, PAGE).map_err(|error| fault(&error))?;
                let Some(last) = page.last() else { return Ok(files) };
                after = Some(last.meta.range.max());
                files.extend(page.into_iter().map(|segment| Listed {
                    level: Level::RAW,
                    range: segment.meta.range,
                    size: segment.bytes,
                    time_ms: segment.meta.time_ms,
                }));
            }
        })
        .await
    }

    fn kind(&self) -> &'static str {
        BUFFER
    }

    /// What lies before a part is read as well.
    fn ranged(&self) -> bool {
        false
    }

    async fn read_at(
        &self,
        key: &FileKey,
        range: Range<u64>,
        _: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        let context = Context::new(&self.name, Operation::Open, key);
        let (source, key) = (self.clone(), key.clone());
        blocking(&context, move || {
            let mut part = Vec::new();
            let mut reader = source.reader(&key, range.start)?.take(range.end.saturating_sub(range.start));
            reader.read_to_end(&mut part).map_err(|error| Fault::Corrupt(error.to_string()))?;
            Ok(part.into())
        })
        .await
    }

    async fn open(
        &self,
        key: &FileKey,
        offset: u64,
        _: &CancellationToken,
    ) -> Result<BoxStream<'static, Result<Bytes, DestinationError>>, DestinationError> {
        let context = Context::new(&self.name, Operation::Open, key);
        let (source, key) = (self.clone(), key.clone());
        let mut reader = blocking(&context, move || source.reader(&key, offset)).await?;
        let (pieces, stream) = mpsc::channel(AHEAD);
        // Ends with the file, or when the stream is dropped.
        tokio::task::spawn_blocking(move || {
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let sent = match fill(&mut *reader, &mut piece) {
                    Ok(0) => return,
                    Ok(length) => {
                        piece.truncate(length);
                        pieces.blocking_send(Ok(piece.into()))
                    }
                    Err(error) => {
                        let _ = pieces.blocking_send(Err(context.error(Fault::Corrupt(error.to_string()))));
                        return;
                    }
                };
                if sent.is_err() {
                    return;
                }
            }
        });
        Ok(ReceiverStream::new(stream).boxed())
    }
}

/// Reads until `piece` is full or the file ends.
fn fill(reader: &mut dyn Read, piece: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < piece.len() {
        match reader.read(&mut piece[filled..])? {
            0 => break,
            length => filled += length,
        }
    }
    Ok(filled)
}

async fn blocking<T: Send + 'static>(
    context: &Context,
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, DestinationError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Fault::Unavailable(error.to_string())))
        .map_err(|fault| context.error(fault))
}
