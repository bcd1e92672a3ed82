//! Reading objects, whole or in part.

use super::S3Destination;
use super::fault::CallError;
use crate::destinations::error::{Context, chain};
use crate::destinations::{ByteStream, DestinationError, Fault};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use std::ops::Range;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

impl S3Destination {
    /// The bytes of an object in `range`, whose end may be `u64::MAX`.
    pub(super) async fn read(
        &self,
        object: &str,
        range: Range<u64>,
        context: Context,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        let header = match range {
            Range { start: 0, end: u64::MAX } => None,
            Range { start, end: u64::MAX } => Some(format!("bytes={start}-")),
            // HTTP has no empty range; the object must be there all the same.
            Range { start, end } if end <= start => {
                return match self.head(object, cancel).await {
                    Ok(Some(_)) => Ok(stream::empty().boxed()),
                    Ok(None) => Err(context.error(Fault::NotFound)),
                    Err(fault) => Err(context.error(fault)),
                };
            }
            Range { start, end } => Some(format!("bytes={start}-{}", end - 1)),
        };
        self.stream(object, header, context, cancel).await
    }

    /// The last `bytes` bytes of an object.
    pub(super) async fn read_end(
        &self,
        object: &str,
        bytes: u64,
        context: Context,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        if bytes == 0 {
            return self.read(object, 0..0, context, cancel).await;
        }
        self.stream(object, Some(format!("bytes=-{bytes}")), context, cancel).await
    }

    async fn stream(
        &self,
        object: &str,
        range: Option<String>,
        context: Context,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        let output = self.get(object, range, cancel).await;
        let Some(output) = output.map_err(|fault| context.error(fault))? else {
            return Ok(stream::empty().boxed());
        };
        let reading = Reading::new(output, context, cancel, self.request_timeout);
        let next = |mut reading: Reading| async { Ok(reading.piece().await?.map(|piece| (piece, reading))) };
        Ok(stream::try_unfold(reading, next).boxed())
    }

    /// Asks for the bytes `range` of an object; `None` when it has none there.
    pub(super) async fn get(
        &self,
        object: &str,
        range: Option<String>,
        cancel: &CancellationToken,
    ) -> Result<Option<GetObjectOutput>, Fault> {
        let request = self.client.get_object().bucket(&self.bucket).key(object).set_range(range.clone());
        match self.call(cancel, 0, request.send()).await {
            Ok(output) if range.is_some() && output.content_range().is_none() => {
                Err(Fault::Rejected("the server ignores byte ranges".into()))
            }
            Ok(output) => Ok(Some(output)),
            Err(CallError::RangeNotSatisfiable) => Ok(None),
            Err(error) => Err(error.into_fault()),
        }
    }
}

/// An object's bytes on their way in.
struct Reading {
    output: GetObjectOutput,
    context: Context,
    cancel: CancellationToken,
    timeout: Duration,
}

impl Reading {
    fn new(output: GetObjectOutput, context: Context, cancel: &CancellationToken, timeout: Duration) -> Self {
        Self { output, context, cancel: cancel.clone(), timeout }
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, DestinationError> {
        let fault = tokio::select! {
            biased;
            () = self.cancel.cancelled() => Fault::Cancelled,
            piece = tokio::time::timeout(self.timeout, self.output.body.next()) => match piece {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(piece))) => return Ok(Some(piece)),
                Ok(Some(Err(error))) => Fault::Interrupted(chain(&error)),
                Err(_) => Fault::TimedOut { after: self.timeout },
            },
        };
        Err(self.context.error(fault))
    }
}
