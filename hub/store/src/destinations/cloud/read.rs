//! Reading objects, whole or in part.

use super::fault::{self, CallError};
use super::{CloudDestination, Kind, location};
use crate::destinations::error::Context;
use crate::destinations::{ByteStream, DestinationError, Fault};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use object_store::{GetOptions, GetRange, ObjectStore};
use std::ops::Range;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

impl CloudDestination {
    /// The bytes of an object in `range`, whose end may be `u64::MAX`.
    pub(super) async fn read(
        &self,
        object: &str,
        range: Range<u64>,
        context: Context,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        let range = match range {
            Range { start: 0, end: u64::MAX } => None,
            Range { start, end: u64::MAX } => Some(GetRange::Offset(start)),
            // HTTP has no empty range; the object must be there all the same.
            Range { start, end } if end <= start => {
                self.size(object, &context, cancel).await?;
                return Ok(stream::empty().boxed());
            }
            range => Some(GetRange::Bounded(range)),
        };
        self.stream(object, range, context, cancel).await
    }

    /// The last `bytes` bytes of an object.
    pub(super) async fn read_end(
        &self,
        object: &str,
        bytes: u64,
        context: Context,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        if bytes > 0 && self.kind == Kind::Gcs {
            return self.stream(object, Some(GetRange::Suffix(bytes)), context, cancel).await;
        }
        // Azure knows no such range.
        let size = self.size(object, &context, cancel).await?;
        if bytes.min(size) == 0 {
            return Ok(stream::empty().boxed());
        }
        self.stream(object, Some(GetRange::Bounded(size.saturating_sub(bytes)..size)), context, cancel).await
    }

    async fn size(
        &self,
        object: &str,
        context: &Context,
        cancel: &CancellationToken,
    ) -> Result<u64, DestinationError> {
        let object = location(object).map_err(|fault| context.error(fault))?;
        match self.head(&object, cancel).await {
            Ok(Some(found)) => Ok(found.meta.size),
            Ok(None) => Err(context.error(Fault::NotFound)),
            Err(fault) => Err(context.error(fault)),
        }
    }

    async fn stream(
        &self,
        object: &str,
        range: Option<GetRange>,
        context: Context,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        let object = location(object).map_err(|fault| context.error(fault))?;
        let options = GetOptions { range, ..GetOptions::default() };
        let found = match self.call(cancel, 0, self.store.get_opts(&object, options)).await {
            Ok(found) => found,
            Err(CallError::RangeNotSatisfiable) => return Ok(stream::empty().boxed()),
            Err(error) => return Err(context.error(error.into_fault())),
        };
        let left = found.range.end - found.range.start;
        let reading = Reading {
            stream: found.into_stream(),
            left,
            context,
            cancel: cancel.clone(),
            timeout: self.request_timeout,
        };
        let next = |mut reading: Reading| async { Ok(reading.piece().await?.map(|piece| (piece, reading))) };
        Ok(stream::try_unfold(reading, next).boxed())
    }
}

/// An object's bytes on their way in.
struct Reading {
    stream: BoxStream<'static, Result<Bytes, object_store::Error>>,
    left: u64,
    context: Context,
    cancel: CancellationToken,
    timeout: Duration,
}

impl Reading {
    async fn piece(&mut self) -> Result<Option<Bytes>, DestinationError> {
        let fault = tokio::select! {
            biased;
            () = self.cancel.cancelled() => Fault::Cancelled,
            piece = tokio::time::timeout(self.timeout, self.stream.next()) => match piece {
                Ok(None) if self.left == 0 => return Ok(None),
                Ok(None) => Fault::Interrupted(format!("the answer ended {} bytes early", self.left)),
                Ok(Some(Ok(piece))) => {
                    self.left = self.left.saturating_sub(piece.len() as u64);
                    return Ok(Some(piece));
                }
                Ok(Some(Err(error))) => fault::explain(&error).into_fault(),
                Err(_) => Fault::TimedOut { after: self.timeout },
            },
        };
        Err(self.context.error(fault))
    }
}
