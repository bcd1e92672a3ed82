//! A source with something around each of its requests: a limit, a count, a deadline. The rest is the source's own.

use super::source::{DynSource, Source, SourceName};
use crate::destinations::error::{Context, Operation};
use crate::destinations::{DestinationError, FileKey, Listed};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::ops::Range;
use tokio_util::sync::CancellationToken;
use walhub_common::DatabaseKey;

/// What is around requests. Whoever keeps something keeps it behind a pointer: each stream has a clone.
pub trait Hooks: Clone + std::fmt::Debug + Send + Sync + 'static {
    /// Around one request: gives its answer, or another. Dropping `answer` gives the request up.
    fn asked<T: Send>(
        &self,
        request: &Request<'_>,
        answer: impl Future<Output = Result<T, DestinationError>> + Send,
    ) -> impl Future<Output = Result<T, DestinationError>> + Send;

    /// Bytes of a file came; more are taken when this has returned.
    fn came(&self, bytes: usize) -> impl Future<Output = ()> + Send;
}

/// A request under way.
#[derive(Debug)]
pub struct Request<'a> {
    source: &'a SourceName,
    /// [`Operation::List`] (all levels), or [`Operation::Open`].
    pub operation: Operation,
    subject: Subject<'a>,
}

#[derive(Debug)]
enum Subject<'a> {
    Database(&'a DatabaseKey),
    File(&'a FileKey),
}

impl Request<'_> {
    /// For an error of this request.
    pub fn context(&self) -> Context {
        match self.subject {
            Subject::Database(key) => Context::new(self.source, self.operation, key),
            Subject::File(key) => Context::new(self.source, self.operation, key),
        }
    }
}

/// See the module doc.
#[derive(Debug)]
pub struct Around<H> {
    inner: DynSource,
    hooks: H,
}

impl<H: Hooks> Around<H> {
    /// `inner`, with `hooks` around it.
    pub fn new(inner: DynSource, hooks: H) -> Self {
        Self { inner, hooks }
    }

    fn open_request<'a>(&'a self, key: &'a FileKey) -> Request<'a> {
        Request { source: self.inner.name(), operation: Operation::Open, subject: Subject::File(key) }
    }
}

#[async_trait]
impl<H: Hooks> Source for Around<H> {
    fn name(&self) -> &SourceName {
        self.inner.name()
    }

    fn lists_exact_times(&self) -> bool {
        self.inner.lists_exact_times()
    }

    async fn list(
        &self,
        database: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        let subject = Subject::Database(database);
        let request = Request { source: self.inner.name(), operation: Operation::List, subject };
        self.hooks.asked(&request, self.inner.list(database, cancel)).await
    }

    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn ranged(&self) -> bool {
        self.inner.ranged()
    }

    async fn read_at(
        &self,
        key: &FileKey,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        let answer = self.inner.read_at(key, range, cancel);
        let bytes = self.hooks.asked(&self.open_request(key), answer).await?;
        self.hooks.came(bytes.len()).await;
        Ok(bytes)
    }

    async fn open(
        &self,
        key: &FileKey,
        offset: u64,
        cancel: &CancellationToken,
    ) -> Result<BoxStream<'static, Result<Bytes, DestinationError>>, DestinationError> {
        let answer = self.inner.open(key, offset, cancel);
        let (pieces, hooks) = (self.hooks.asked(&self.open_request(key), answer).await?, self.hooks.clone());
        let told = pieces.then(move |piece| {
            let hooks = hooks.clone();
            async move {
                if let Ok(piece) = &piece {
                    hooks.came(piece.len()).await;
                }
                piece
            }
        });
        Ok(told.boxed())
    }
}
