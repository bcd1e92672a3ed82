//! A decorator that makes any destination unreliable, the same way for the same seed: failures, delays, answers that
//! lie (the put or the delete happened, the caller is told it did not), and a switch that takes it away. It counts every call.
//! On request its server's clock is one of the caller's own, for tests that let days pass in seconds.

use super::error::{Context, Operation, many};
use super::{
    Body, ByteStream, Destination, DestinationError, DynDestination, Fault, FileKey, Listed, ListedObject,
    ObjectPath, Put, PutMeta, PutMode,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, DestinationName, Level};

/// How unreliable: probabilities from 0 to 1.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Faults {
    /// A call fails before anything happened.
    pub fail: f64,
    /// A put or a delete happens, and the caller is told that no answer came.
    pub lie: f64,
    /// A read breaks off somewhere.
    pub break_read: f64,
    /// A call is delayed.
    pub delay: f64,
    /// The longest delay.
    pub max_delay: Duration,
}

/// See the module doc.
#[derive(Debug)]
pub struct Faulty {
    inner: DynDestination,
    faults: Faults,
    down: AtomicBool,
    locked: AtomicBool,
    clock: Option<Arc<AtomicI64>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    random: StdRng,
    calls: HashMap<Operation, u64>,
    failed: u64,
    /// When files were put, by [`Faulty::with_clock`].
    times: HashMap<FileKey, i64>,
    /// Of [`Faulty::fail_next_put`].
    waits: Option<oneshot::Receiver<Fault>>,
}

impl Faulty {
    /// Wraps `inner`.
    pub fn new(inner: DynDestination, faults: Faults, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let state = State { random, calls: HashMap::new(), failed: 0, times: HashMap::new(), waits: None };
        let (down, locked) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { inner, faults, down, locked, clock: None, state: Mutex::new(state) }
    }

    /// Lists files with the times (Unix ms) that `clock` showed when they were put. Not for folders, whose times come with
    /// the files.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<AtomicI64>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Takes the destination away, or brings it back: while it is down, every call fails at once.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// Puts every file under a lock, or lifts it: locked ones cannot be deleted.
    pub fn set_locked(&self, locked: bool) {
        self.locked.store(locked, Ordering::SeqCst);
    }

    /// The next put waits until it is told how to fail.
    pub fn fail_next_put(&self) -> oneshot::Sender<Fault> {
        let (tell, told) = oneshot::channel();
        self.state().waits = Some(told);
        tell
    }

    /// Calls of one kind so far, failed ones included.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.state().calls.get(&operation).copied().unwrap_or(0)
    }

    /// Calls that were made to fail or to lie.
    pub fn failed(&self) -> u64 {
        self.state().failed
    }

    /// With the times of [`Faulty::with_clock`].
    fn timed(&self, database: &DatabaseKey, mut files: Vec<Listed>) -> Vec<Listed> {
        if self.clock.is_some() {
            let state = self.state();
            for file in &mut files {
                let key = FileKey { database: database.clone(), level: file.level, range: file.range };
                file.time_ms = state.times.get(&key).copied().unwrap_or(file.time_ms);
            }
        }
        files
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self, probability: f64) -> bool {
        probability > 0.0 && self.state().random.random_bool(probability.min(1.0))
    }

    /// Counts, delays, and perhaps fails a call. Every call draws the same number of times.
    async fn enter(&self, context: &Context, operation: Operation) -> Result<(), DestinationError> {
        let (delay, fail, waits) = {
            let mut state = self.state();
            *state.calls.entry(operation).or_default() += 1;
            let delay = state.random.random_range(0.0..1.0) < self.faults.delay;
            let length = self.faults.max_delay.mul_f64(state.random.random_range(0.0..=1.0));
            let fail = state.random.random_range(0.0..1.0) < self.faults.fail;
            let waits = if operation == Operation::Put { state.waits.take() } else { None };
            (delay.then_some(length), fail, waits)
        };
        if let Some(told) = waits
            && let Ok(fault) = told.await
        {
            self.state().failed += 1;
            return Err(context.error(fault));
        }
        if let Some(length) = delay {
            tokio::time::sleep(length).await;
        }
        if fail || self.down.load(Ordering::SeqCst) {
            self.state().failed += 1;
            return Err(context.error(Fault::Unavailable("a fault made for a test".into())));
        }
        Ok(())
    }

    /// An answer that lies, perhaps.
    fn answer<T>(&self, context: &Context, result: T) -> Result<T, DestinationError> {
        if self.draw(self.faults.lie) {
            self.state().failed += 1;
            return Err(context.error(Fault::TimedOut { after: Duration::ZERO }));
        }
        Ok(result)
    }

    /// A stream that breaks off, perhaps: one piece, cut in half, and then nothing more.
    fn reading(&self, context: Context, stream: ByteStream) -> ByteStream {
        if !self.draw(self.faults.break_read) {
            return stream;
        }
        let error = context.error(Fault::Interrupted("a fault made for a test".into()));
        let half = stream.take(1).map(|piece| piece.map(|piece| piece.slice(..piece.len().div_ceil(2))));
        half.chain(stream::once(async move { Err(error) })).boxed()
    }

    fn context(&self, operation: Operation, subject: impl std::fmt::Display) -> Context {
        Context::new(self.inner.name(), operation, subject)
    }
}

#[async_trait]
impl Destination for Faulty {
    fn name(&self) -> &DestinationName {
        self.inner.name()
    }

    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    async fn put(
        &self,
        key: &FileKey,
        body: Body,
        meta: PutMeta,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError> {
        let context = self.context(Operation::Put, key);
        self.enter(&context, Operation::Put).await?;
        let put = self.inner.put(key, body, meta, cancel).await?;
        if let Some(clock) = &self.clock {
            self.state().times.entry(key.clone()).or_insert_with(|| clock.load(Ordering::SeqCst));
        }
        self.answer(&context, put)
    }

    async fn list(
        &self,
        database: &DatabaseKey,
        level: Level,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        self.enter(&self.context(Operation::List, database), Operation::List).await?;
        Ok(self.timed(database, self.inner.list(database, level, cancel).await?))
    }

    async fn list_all(
        &self,
        database: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        self.enter(&self.context(Operation::List, database), Operation::List).await?;
        Ok(self.timed(database, self.inner.list_all(database, cancel).await?))
    }

    async fn read_at(
        &self,
        key: &FileKey,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        self.enter(&self.context(Operation::Open, key), Operation::Open).await?;
        self.inner.read_at(key, range, cancel).await
    }

    async fn open(
        &self,
        key: &FileKey,
        offset: u64,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        let context = self.context(Operation::Open, key);
        self.enter(&context, Operation::Open).await?;
        let stream = self.inner.open(key, offset, cancel).await?;
        Ok(self.reading(context, stream))
    }

    async fn delete(&self, keys: &[FileKey], cancel: &CancellationToken) -> Result<(), DestinationError> {
        let context = self.context(Operation::Delete, many(keys));
        self.enter(&context, Operation::Delete).await?;
        if self.locked.load(Ordering::SeqCst) {
            return Err(context.error(Fault::Locked("until tomorrow".to_owned())));
        }
        self.inner.delete(keys, cancel).await?;
        self.answer(&context, ())
    }

    async fn list_databases(&self, cancel: &CancellationToken) -> Result<Vec<DatabaseKey>, DestinationError> {
        self.enter(&self.context(Operation::List, "the databases"), Operation::List).await?;
        self.inner.list_databases(cancel).await
    }

    async fn put_object(
        &self,
        path: &ObjectPath,
        body: Body,
        mode: PutMode,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError> {
        let context = self.context(Operation::Put, path);
        self.enter(&context, Operation::Put).await?;
        let put = self.inner.put_object(path, body, mode, cancel).await?;
        self.answer(&context, put)
    }

    async fn open_object(
        &self,
        path: &ObjectPath,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        let context = self.context(Operation::Open, path);
        self.enter(&context, Operation::Open).await?;
        let stream = self.inner.open_object(path, range, cancel).await?;
        Ok(self.reading(context, stream))
    }

    async fn open_object_end(
        &self,
        path: &ObjectPath,
        bytes: u64,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        let context = self.context(Operation::Open, path);
        self.enter(&context, Operation::Open).await?;
        let stream = self.inner.open_object_end(path, bytes, cancel).await?;
        Ok(self.reading(context, stream))
    }

    async fn list_objects(
        &self,
        folder: &ObjectPath,
        after: Option<&ObjectPath>,
        cancel: &CancellationToken,
    ) -> Result<Vec<ListedObject>, DestinationError> {
        self.enter(&self.context(Operation::List, folder), Operation::List).await?;
        self.inner.list_objects(folder, after, cancel).await
    }

    async fn delete_objects(
        &self,
        paths: &[ObjectPath],
        cancel: &CancellationToken,
    ) -> Result<(), DestinationError> {
        let context = self.context(Operation::Delete, many(paths));
        self.enter(&context, Operation::Delete).await?;
        self.inner.delete_objects(paths, cancel).await?;
        self.answer(&context, ())
    }

    async fn probe(&self, cancel: &CancellationToken) -> Result<(), DestinationError> {
        self.enter(&self.context(Operation::Probe, self.location()), Operation::Probe).await?;
        self.inner.probe(cancel).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destinations::config::FileConfig;
    use crate::destinations::file::FileDestination;
    use std::path::Path;
    use walhub_common::TxidRange;

    fn faulty(path: &Path, faults: Faults, seed: u64) -> Faulty {
        let name = DestinationName::new("disk").unwrap();
        Faulty::new(Arc::new(FileDestination::new(name, &FileConfig { path: path.to_owned() })), faults, seed)
    }

    async fn outcomes(faults: Faults, seed: u64) -> Vec<Option<Put>> {
        let folder = tempfile::tempdir().unwrap();
        let destination = faulty(folder.path(), faults, seed);
        let mut outcomes = Vec::new();
        for n in 1..=50 {
            let key = FileKey {
                database: "node/app.db".parse().unwrap(),
                level: Level::RAW,
                range: TxidRange::from_raw(n, n).unwrap(),
            };
            let (body, meta) = (Body::Bytes(Bytes::from_static(b"x")), PutMeta { time_ms: 0, post: None });
            for _ in 0..2 {
                outcomes
                    .push(destination.put(&key, body.clone(), meta, &CancellationToken::new()).await.ok());
            }
        }
        assert_eq!(destination.calls(Operation::Put), 100);
        assert_eq!(destination.failed(), outcomes.iter().filter(|outcome| outcome.is_none()).count() as u64);
        outcomes
    }

    #[tokio::test]
    async fn one_seed_one_course() {
        let faults = Faults { fail: 0.3, lie: 0.3, ..Faults::default() };
        let course = outcomes(faults, 7).await;
        assert_eq!(course, outcomes(faults, 7).await);
        assert_ne!(course, outcomes(faults, 8).await);
    }

    #[tokio::test]
    async fn after_a_lie_the_file_is_there() {
        let course = outcomes(Faults { lie: 0.5, ..Faults::default() }, 3).await;
        let lied = course.chunks(2).filter(|pair| pair == &[None, Some(Put::AlreadyThere)]).count();
        assert!(lied > 5, "{course:?}");
    }
}
