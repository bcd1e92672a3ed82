//! A destination whose new files lie in packs, and which looks like any other: what is in a pack is listed, read and
//! deleted as if it had been put by itself. So lanes settle, siblings catch up, restores plan and compaction reads
//! without knowing of packs.
//!
//! # Requests
//! - Once, before the first answer: one listing of the packs (per 1,000), one read per pack, one listing of the databases.
//! - From then on it knows what lies in packs by itself: this hub alone writes here. A listing costs a request only for
//!   a database that has files of its own, for these may be many.
//!
//! # Failures
//! - Nothing is believed of packs before all indices were read; a call before that waits, or fails as the reading did.
//! - When the place itself is gone ([`Fault::Gone`]), nothing is known of it any more: its packs are read again before the
//!   next answer, for what comes back may be an empty one.
//! - A damaged pack is named in the log, its files are not listed, everything else goes on.
//! - A name that is taken by another pack (of a listing that lagged behind, or of a hub that should not be there) makes
//!   the put fail as a conflict; the next number is free, and the files of that pack are known.

use super::catalog::{Catalog, Place};
use super::format::Pack;
use super::load::{self, Index};
use crate::destinations::error::{Context, Operation};
use crate::destinations::object::collect;
use crate::destinations::{
    Body, ByteStream, Destination, DestinationError, DynDestination, Fault, FileKey, Listed, ListedObject,
    ObjectPath, Put, PutMeta, PutMode,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, DestinationName, Level};

/// Cold packs read back after one deletion.
const THAW_AT_ONCE: usize = 64;

/// See the module doc.
#[derive(Debug)]
pub struct PackedDestination {
    inner: DynDestination,
    known: Mutex<Option<Shared>>,
    loading: tokio::sync::Mutex<()>,
}

/// A call keeps to what was known when it began: what it learns of a place that was gone since is nobody's knowledge.
type Shared = Arc<Mutex<Known>>;

/// What lies at the destination.
#[derive(Debug)]
struct Known {
    catalog: Catalog,
    next: u64,
    /// Databases that may have files outside of packs: every other one has none.
    own_files: HashSet<DatabaseKey>,
    /// The cold files of the database that was asked for last.
    cold: Option<(DatabaseKey, Vec<Place>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PackedDestination {
    /// Over `inner`, to which nobody else may write.
    pub fn new(inner: DynDestination) -> Self {
        Self { inner, known: Mutex::default(), loading: tokio::sync::Mutex::default() }
    }

    /// Number of the next pack; it is the same one until a put of it has come to an end.
    pub async fn next(&self, cancel: &CancellationToken) -> Result<u64, DestinationError> {
        self.ask(cancel, |known| known.next).await
    }

    /// Stores a pack under its number. After an unknown outcome it may be repeated with the same number and bytes.
    /// [`Fault::Conflict`]: another pack has that number; it is known from now on, and [`PackedDestination::next`] is
    /// another number.
    pub async fn put_pack(
        &self,
        seq: u64,
        pack: &Pack,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError> {
        let known = self.load(cancel).await?;
        let (path, body) = (load::path(seq), Body::Bytes(pack.bytes.clone()));
        let put = self.heed(self.inner.put_object(&path, body, PutMode::Create, cancel)).await;
        let taken = matches!(&put, Err(DestinationError { fault: Fault::Conflict(_), .. }));
        let other = if taken { Some(self.heed(load::index(&self.inner, seq, cancel)).await?) } else { None };
        if put.is_ok() || taken {
            let mut known = lock(&known);
            match &other {
                None => known.catalog.add(seq, &pack.entries),
                Some(Index::Read(entries)) => known.catalog.add(seq, entries),
                Some(Index::Absent | Index::Damaged) => {}
            }
            known.next = known.next.max(seq + 1);
        }
        put
    }

    /// Makes a call. When the place is gone, what was known of it is forgotten before the caller hears so.
    async fn heed<T>(
        &self,
        call: impl Future<Output = Result<T, DestinationError>>,
    ) -> Result<T, DestinationError> {
        let result = call.await;
        if matches!(&result, Err(DestinationError { fault: Fault::Gone(_), .. })) {
            *lock(&self.known) = None;
        }
        result
    }

    async fn ask<T>(
        &self,
        cancel: &CancellationToken,
        work: impl FnOnce(&mut Known) -> T,
    ) -> Result<T, DestinationError> {
        let known = self.load(cancel).await?;
        Ok(work(&mut lock(&known)))
    }

    fn loaded(&self) -> Option<Shared> {
        lock(&self.known).clone()
    }

    /// What lies there, read unless it is known; whoever comes meanwhile waits for it.
    async fn load(&self, cancel: &CancellationToken) -> Result<Shared, DestinationError> {
        if cancel.is_cancelled() {
            let context = Context::new(self.name(), Operation::Open, "its packs");
            return Err(context.error(Fault::Cancelled));
        }
        if let Some(known) = self.loaded() {
            return Ok(known);
        }
        let _turn = self.loading.lock().await;
        if let Some(known) = self.loaded() {
            return Ok(known);
        }
        let (catalog, next) = load::all(&self.inner, cancel).await?;
        let own_files: HashSet<DatabaseKey> = self.inner.list_databases(cancel).await?.into_iter().collect();
        let (packs, databases) = (catalog.packs(), own_files.len());
        tracing::info!(destination = %self.name(), packs, databases, "read the indices of all packs");
        let known = Arc::new(Mutex::new(Known { catalog, next, own_files, cold: None }));
        *lock(&self.known) = Some(known.clone());
        Ok(known)
    }

    /// All files of a database in packs, oldest pack first.
    async fn packed(
        &self,
        database: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Result<Vec<Place>, DestinationError> {
        let known = self.load(cancel).await?;
        let look = |known: &Known| (known.catalog.files(database), known.catalog.cold(database));
        let (warm, cold) = look(&lock(&known));
        if cold.is_empty() {
            return Ok(warm);
        }
        let mut places = self.cold_files(&known, database, &cold, cancel).await?;
        places.extend(warm);
        Ok(places)
    }

    async fn cold_files(
        &self,
        known: &Shared,
        database: &DatabaseKey,
        packs: &[u64],
        cancel: &CancellationToken,
    ) -> Result<Vec<Place>, DestinationError> {
        // Packs only ever leave the cold ones, but for those that join them: then the newest is another.
        let still = |places: &[Place]| places.iter().all(|place| packs.binary_search(&place.seq).is_ok());
        if let Some((_, places)) =
            lock(known).cold.as_ref().filter(|(of, places)| of == database && still(places))
            && places.last().map(|place| place.seq) == packs.last().copied()
        {
            return Ok(places.clone());
        }
        let mut indices = load::indices(&self.inner, packs.to_vec(), cancel);
        let mut places = Vec::new();
        while let Some((seq, index)) = self.heed(indices.try_next()).await? {
            if let Index::Read(entries) = index {
                let own = entries.iter().filter(|entry| entry.key.database == *database);
                places.extend(own.map(|entry| Place::of(seq, entry)));
            }
        }
        lock(known).cold = Some((database.clone(), places.clone()));
        Ok(places)
    }

    async fn find(
        &self,
        key: &FileKey,
        cancel: &CancellationToken,
    ) -> Result<Option<Place>, DestinationError> {
        let known = self.load(cancel).await?;
        let look = |known: &Known| (known.catalog.find(key), known.catalog.cold(&key.database));
        let (found, cold) = look(&lock(&known));
        if found.is_some() || cold.is_empty() {
            return Ok(found);
        }
        let places = self.cold_files(&known, &key.database, &cold, cancel).await?;
        Ok(places.into_iter().rev().find(|place| place.is(key)))
    }

    async fn has_own_files(
        &self,
        database: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Result<bool, DestinationError> {
        self.ask(cancel, |known| known.own_files.contains(database)).await
    }

    /// Deletes the packs of which every file was asked to be deleted, and takes cold ones back where there is room now.
    async fn sweep(&self, cancel: &CancellationToken) -> Result<(), DestinationError> {
        let known = self.load(cancel).await?;
        // The newest one stays: it tells the next hub which numbers were given.
        let may_go = |known: &Known| -> Vec<u64> {
            known.catalog.emptied().into_iter().filter(|seq| seq + 1 < known.next).collect()
        };
        let emptied = may_go(&lock(&known));
        if !emptied.is_empty() {
            // The newest first: what is left when this ends in the middle still has what leads to it.
            let paths: Vec<ObjectPath> = emptied.iter().rev().map(|seq| load::path(*seq)).collect();
            self.heed(self.inner.delete_objects(&paths, cancel)).await?;
            emptied.iter().for_each(|seq| lock(&known).catalog.gone(*seq));
            tracing::info!(destination = %self.name(), packs = emptied.len(), "deleted packs without files");
        }
        for _ in 0..THAW_AT_ONCE {
            let Some(seq) = lock(&known).catalog.to_thaw() else { break };
            match self.heed(load::index(&self.inner, seq, cancel)).await? {
                Index::Read(entries) => lock(&known).catalog.thaw(seq, &entries),
                Index::Absent | Index::Damaged => lock(&known).catalog.gone(seq),
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Destination for PackedDestination {
    fn name(&self) -> &DestinationName {
        self.inner.name()
    }

    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    fn packs(&self) -> Option<&PackedDestination> {
        Some(self)
    }

    async fn put(
        &self,
        key: &FileKey,
        body: Body,
        meta: PutMeta,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError> {
        // Before the outcome is known: a file that may be there is looked for.
        self.ask(cancel, |known| known.own_files.insert(key.database.clone())).await?;
        self.heed(self.inner.put(key, body, meta, cancel)).await
    }

    async fn list(
        &self,
        database: &DatabaseKey,
        level: Level,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        let own = self.has_own_files(database, cancel).await?;
        let mut listed =
            if own { self.heed(self.inner.list(database, level, cancel)).await? } else { Vec::new() };
        let places = self.packed(database, cancel).await?;
        listed.extend(places.iter().filter(|place| place.level == level).map(Place::listed));
        Ok(once(listed))
    }

    async fn list_all(
        &self,
        database: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        let own = self.has_own_files(database, cancel).await?;
        let mut listed =
            if own { self.heed(self.inner.list_all(database, cancel)).await? } else { Vec::new() };
        listed.extend(self.packed(database, cancel).await?.iter().map(Place::listed));
        Ok(once(listed))
    }

    async fn read_at(
        &self,
        key: &FileKey,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        let Some(place) = self.find(key, cancel).await? else {
            return self.heed(self.inner.read_at(key, range, cancel)).await;
        };
        let length = u64::from(place.length);
        let Range { start, end } = range.start.min(length)..range.end.min(length);
        if (start, end) == (0, length) {
            // Against its hash.
            return self.heed(load::file(&self.inner, &place, cancel)).await;
        }
        let begin = u64::from(place.offset);
        let path = load::path(place.seq);
        let part =
            self.heed(self.inner.open_object(&path, begin + start..begin + end.max(start), cancel)).await?;
        collect(part, end.saturating_sub(start) as usize).await
    }

    async fn open(
        &self,
        key: &FileKey,
        offset: u64,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        let Some(place) = self.find(key, cancel).await? else {
            return self.heed(self.inner.open(key, offset, cancel)).await;
        };
        let file = self.heed(load::file(&self.inner, &place, cancel)).await?;
        let rest = file.slice(file.len().min(offset as usize)..);
        Ok(stream::iter((!rest.is_empty()).then_some(Ok(rest))).boxed())
    }

    async fn delete(&self, keys: &[FileKey], cancel: &CancellationToken) -> Result<(), DestinationError> {
        let own: Vec<FileKey> = self
            .ask(cancel, |known| {
                known.catalog.forget(keys);
                keys.iter().filter(|key| known.own_files.contains(&key.database)).cloned().collect()
            })
            .await?;
        if !own.is_empty() {
            self.heed(self.inner.delete(&own, cancel)).await?;
        }
        self.sweep(cancel).await
    }

    async fn list_databases(&self, cancel: &CancellationToken) -> Result<Vec<DatabaseKey>, DestinationError> {
        let own = self.heed(self.inner.list_databases(cancel)).await?;
        let packed = self.ask(cancel, |known| known.catalog.databases().cloned().collect::<Vec<_>>()).await?;
        let all: BTreeSet<DatabaseKey> = own.into_iter().chain(packed).collect();
        Ok(all.into_iter().collect())
    }

    async fn put_object(
        &self,
        path: &ObjectPath,
        body: Body,
        mode: PutMode,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError> {
        self.heed(self.inner.put_object(path, body, mode, cancel)).await
    }

    async fn open_object(
        &self,
        path: &ObjectPath,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        self.heed(self.inner.open_object(path, range, cancel)).await
    }

    async fn open_object_end(
        &self,
        path: &ObjectPath,
        bytes: u64,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        self.heed(self.inner.open_object_end(path, bytes, cancel)).await
    }

    async fn list_objects(
        &self,
        folder: &ObjectPath,
        after: Option<&ObjectPath>,
        cancel: &CancellationToken,
    ) -> Result<Vec<ListedObject>, DestinationError> {
        self.heed(self.inner.list_objects(folder, after, cancel)).await
    }

    async fn delete_objects(
        &self,
        paths: &[ObjectPath],
        cancel: &CancellationToken,
    ) -> Result<(), DestinationError> {
        self.heed(self.inner.delete_objects(paths, cancel)).await
    }

    async fn probe(&self, cancel: &CancellationToken) -> Result<(), DestinationError> {
        self.heed(self.inner.probe(cancel)).await?;
        self.load(cancel).await.map(drop)
    }
}

/// Sorted. A file may lie there twice, in a pack and by itself: the same transactions, so one of them is enough.
fn once(mut files: Vec<Listed>) -> Vec<Listed> {
    let mut seen = BTreeSet::new();
    files.retain(|file| seen.insert((file.level, file.range)));
    files.sort_unstable_by_key(|file| (file.level, file.range));
    files
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;
