//! The bytes of a plan, file after file. The next files are opened while one is read; a read that breaks goes on where
//! it broke. What passes is checked as far as a plan allows: header against name, length against listing. Whether the
//! content is whole is for the reader of the LTX files to say: each carries its own checksum.

use super::plan::{Plan, PlannedFile};
use super::source::DynSource;
use super::times::check_header;
use crate::destinations::error::{Context, Operation};
use crate::destinations::{DestinationError, Fault, FileKey};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::DatabaseKey;
use walhub_common::backoff::{Backoff, Class};
use walhub_common::ltx::HEADER_BYTES;

/// Files opened ahead of the one that is read.
const AHEAD: usize = 4;
/// Attempts to go on without a single new byte.
const MAX_ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A part of a restore.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// The next file begins.
    Start(PlannedFile),
    /// Bytes of the current file, never none.
    Data(Bytes),
}

/// Streams the files of a plan in order. Ends with the first error, or when `cancel` is cancelled. A file that vanished
/// since it was listed is [`Fault::NotFound`]: list and plan again.
pub fn fetch(
    sources: &[DynSource],
    database: &DatabaseKey,
    plan: &Plan,
    cancel: &CancellationToken,
) -> BoxStream<'static, Result<Piece, DestinationError>> {
    let readings: Vec<_> =
        plan.files.iter().map(|file| Reading::new(sources, database, file.clone(), cancel)).collect();
    let opening = readings.into_iter().map(|reading| async {
        let mut reading = reading?;
        reading.reopen().await?;
        let start = Piece::Start(reading.file.clone());
        let rest = stream::try_unfold(reading, |mut reading| async {
            Ok(reading.next().await?.map(|data| (Piece::Data(data), reading)))
        });
        Ok(stream::once(async { Ok(start) }).chain(rest))
    });
    stream::iter(opening).buffered(AHEAD).try_flatten().boxed()
}

/// One file on its way.
struct Reading {
    source: DynSource,
    file: PlannedFile,
    key: FileKey,
    context: Context,
    cancel: CancellationToken,
    offset: u64,
    bytes: Option<BoxStream<'static, Result<Bytes, DestinationError>>>,
    failures: u32,
    backoff: Backoff,
}

impl Reading {
    fn new(
        sources: &[DynSource],
        database: &DatabaseKey,
        file: PlannedFile,
        cancel: &CancellationToken,
    ) -> Result<Self, DestinationError> {
        let key = file.key(database);
        let context = Context::new(&file.source, Operation::Open, &key);
        let Some(source) = sources.iter().find(|source| source.name() == &file.source).cloned() else {
            return Err(context.error(Fault::Misconfigured("there is no such source".into())));
        };
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let cancel = cancel.clone();
        Ok(Self { source, file, key, context, cancel, offset: 0, bytes: None, failures: 0, backoff })
    }

    /// Opens at the offset; pauses and tries again as long as that may help.
    async fn reopen(&mut self) -> Result<(), DestinationError> {
        loop {
            match self.source.open(&self.key, self.offset, &self.cancel).await {
                Ok(bytes) => {
                    self.bytes = Some(bytes);
                    return Ok(());
                }
                Err(error) => self.pause_after(error).await?,
            }
        }
    }

    /// Gives the error back when it is for good, or came too often in a row.
    async fn pause_after(&mut self, error: DestinationError) -> Result<(), DestinationError> {
        self.bytes = None;
        self.failures += 1;
        let passing = matches!(error.class(), Class::Transient | Class::Throttled | Class::Unknown);
        if !passing || self.failures >= MAX_ATTEMPTS {
            return Err(error);
        }
        tracing::debug!(%error, offset = self.offset, "a read broke; it goes on");
        tokio::select! {
            () = self.cancel.cancelled() => Err(self.context.error(Fault::Cancelled)),
            () = tokio::time::sleep(self.backoff.next_delay()) => Ok(()),
        }
    }

    /// The next bytes; `None` at the end of a file of the listed length.
    async fn next(&mut self) -> Result<Option<Bytes>, DestinationError> {
        let mut data = self.piece().await?;
        if self.offset == 0 && data.is_some() {
            let mut start = BytesMut::new();
            // The header first, however small the pieces are.
            while let Some(piece) = data.take() {
                start.extend_from_slice(&piece);
                self.offset = start.len() as u64;
                if start.len() >= HEADER_BYTES {
                    break;
                }
                data = self.piece().await?;
            }
            self.offset = 0;
            check_header(&start, &self.file).map_err(|text| self.corrupt(text))?;
            data = Some(start.freeze());
        }
        let listed = self.file.size;
        match &data {
            Some(data) => self.offset += data.len() as u64,
            None if self.offset == listed => return Ok(None),
            None => return Err(self.corrupt(format!("it ends at byte {}, listed are {listed}", self.offset))),
        }
        if self.offset > listed {
            return Err(self.corrupt(format!("it is longer than the {listed} bytes listed")));
        }
        Ok(data)
    }

    /// Whatever comes next at the offset, across breaks.
    async fn piece(&mut self) -> Result<Option<Bytes>, DestinationError> {
        loop {
            let Some(bytes) = &mut self.bytes else {
                self.reopen().await?;
                continue;
            };
            match bytes.try_next().await {
                Ok(Some(data)) if data.is_empty() => {}
                Ok(Some(data)) => {
                    self.failures = 0;
                    self.backoff.reset();
                    return Ok(Some(data));
                }
                Ok(None) => return Ok(None),
                Err(error) => self.pause_after(error).await?,
            }
        }
    }

    fn corrupt(&self, text: String) -> DestinationError {
        self.context.error(Fault::Corrupt(text))
    }
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
