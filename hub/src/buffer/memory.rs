//! The buffer's twin in memory: the same contract without a disk. It is the model that the real one is compared with,
//! and the buffer of other modules' tests.

use super::squash::{GivenUp, LEAST_GAIN, Losses, MAX_RUN, Merger, cost, next_run, whole};
use super::tail::{Tail, check_adoption, wanted};
use super::{
    BufferError, Chunk, DatabaseId, Place, Registered, SegmentMeta, SegmentRef, Takers, Usage, WalBuffer,
    is_kept, lineage_for,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use walhub_common::{DatabaseKey, DestinationName, Pos, Txid};

/// A buffer that lives as long as its last handle.
#[derive(Debug)]
pub struct MemoryBuffer {
    state: Arc<Mutex<State>>,
    closed: AtomicBool,
    changed: watch::Sender<u64>,
    max_bytes: u64,
    merger: Option<Arc<dyn Merger>>,
}

#[derive(Debug, Default)]
struct State {
    ids: BTreeMap<DatabaseKey, DatabaseId>,
    databases: BTreeMap<DatabaseId, Database>,
    order: BTreeMap<u64, (DatabaseId, Txid)>,
    appended: u64,
    cursors: HashMap<(DestinationName, DatabaseId), Txid>,
    takers: Option<Arc<dyn Takers>>,
    losses: Losses,
    usage: Usage,
}

#[derive(Debug)]
struct Database {
    registered: Registered,
    tail: Tail,
    open: Vec<Bytes>,
    segments: BTreeMap<Txid, Stored>,
}

#[derive(Debug)]
struct Stored {
    meta: SegmentMeta,
    number: u64,
    chunks: Vec<Bytes>,
}

impl Stored {
    fn bytes(&self) -> u64 {
        self.chunks.iter().map(|c| c.len() as u64).sum()
    }

    fn to_ref(&self) -> SegmentRef {
        let at = (0, self.number);
        let chunks = u32::try_from(self.chunks.len()).expect("BUG: chunk numbers are u32");
        SegmentRef { meta: self.meta, bytes: self.bytes(), place: Place { first: at, last: at, chunks } }
    }
}

impl MemoryBuffer {
    /// An empty buffer of at most `max_bytes` of segments.
    pub fn new(max_bytes: u64) -> Self {
        Self::over(Arc::default(), max_bytes, None)
    }

    /// One that gives up restore points when it is full.
    #[must_use]
    pub fn squashing(max_bytes: u64, merger: Arc<dyn Merger>) -> Self {
        Self::over(Arc::default(), max_bytes, Some(merger))
    }

    /// Merges what can be merged of one database.
    #[cfg(test)]
    pub(crate) fn squash_one(&self, id: DatabaseId) {
        let merger = self.merger.clone().expect("BUG: it does not squash");
        self.lock().squash(id, &*merger, u64::MAX);
    }

    /// What a restart leaves: the same contents without unfinished segments, open again.
    #[must_use]
    pub fn reopen(&self) -> Self {
        let mut state = self.lock();
        for database in state.databases.values_mut() {
            database.tail.open = None;
            database.open.clear();
        }
        let bytes = state.databases.values().flat_map(|d| d.segments.values()).map(Stored::bytes).sum();
        state.usage = Usage { bytes, ..Usage::default() };
        state.takers = None;
        state.losses.clear();
        Self::over(Arc::clone(&self.state), self.max_bytes, self.merger.clone())
    }

    fn over(state: Arc<Mutex<State>>, max_bytes: u64, merger: Option<Arc<dyn Merger>>) -> Self {
        Self { state, closed: AtomicBool::new(false), changed: watch::Sender::new(0), max_bytes, merger }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>, BufferError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(BufferError::Closed);
        }
        Ok(self.lock())
    }
}

impl State {
    fn database(&self, id: DatabaseId) -> Result<&Database, BufferError> {
        self.databases.get(&id).ok_or(BufferError::UnknownDatabase(id))
    }

    /// Up to where segments of a database may go: every lane has taken them, or one that answers.
    fn passed(&self, id: DatabaseId, one_is_enough: bool) -> Option<Txid> {
        let takers = self.takers.as_ref()?;
        let lanes = takers.of(id);
        let at = |lane: &DestinationName| self.cursors.get(&(lane.clone(), id)).copied();
        let all = lanes.iter().map(at).min().flatten();
        let one = lanes.iter().filter(|lane| one_is_enough && takers.answers(lane)).filter_map(at).max();
        one.max(all)
    }

    /// True when nobody needs this segment, or whoever does can have it elsewhere.
    fn may_go(&self, id: DatabaseId, min: Txid, one_is_enough: bool) -> bool {
        let range = self.databases[&id].segments[&min].meta.range;
        let kept = self.takers.as_ref().is_some_and(|takers| is_kept(&takers.kept(id), range));
        !kept && Some(range.max()) <= self.passed(id, one_is_enough)
    }

    fn trim(&mut self, target_bytes: u64) {
        while self.usage.bytes > target_bytes {
            let Some((&number, &(id, min))) = self.order.first_key_value() else { return };
            if !self.may_go(id, min, false) {
                return;
            }
            self.remove(number);
        }
    }

    fn make_room(&mut self, target_bytes: u64, merger: Option<&dyn Merger>) {
        self.free(target_bytes, merger);
        if self.usage.bytes > target_bytes
            && let Some(takers) = &self.takers
        {
            takers.give_up_kept();
            self.free(target_bytes, merger);
        }
    }

    fn free(&mut self, target_bytes: u64, merger: Option<&dyn Merger>) {
        self.trim(target_bytes);
        let numbers: Vec<u64> = self.order.keys().copied().collect();
        for number in numbers {
            if self.usage.bytes <= target_bytes {
                return;
            }
            let (id, min) = self.order[&number];
            if self.may_go(id, min, merger.is_some()) {
                self.remove(number);
            }
        }
        let Some(merger) = merger else { return };
        let mut backlog: Vec<(u64, DatabaseId)> = Vec::new();
        for (id, database) in &self.databases {
            backlog.push((database.segments.values().map(Stored::bytes).sum(), *id));
        }
        backlog.sort_unstable_by_key(|(bytes, id)| (Reverse(*bytes), *id));
        for (_, id) in backlog {
            if self.usage.bytes > target_bytes {
                self.squash(id, merger, self.usage.bytes - target_bytes);
            }
        }
    }

    fn remove(&mut self, number: u64) {
        let (id, min) = self.order.remove(&number).expect("BUG: no such segment");
        let database = self.databases.get_mut(&id).expect("BUG: segment of no database");
        let segment = database.segments.remove(&min).expect("BUG: ordered segment is not stored");
        self.usage.bytes -= segment.bytes();
    }

    fn squash(&mut self, id: DatabaseId, merger: &dyn Merger, wanted: u64) {
        let lanes = self.takers.as_ref().map(|takers| takers.of(id));
        let at = |lane: &DestinationName| self.cursors.get(&(lane.clone(), id)).copied();
        let mut cuts: BTreeSet<Txid> = lanes.iter().flat_map(|lanes| lanes.iter()).filter_map(at).collect();
        let furthest = cuts.last().copied();
        let kept = self.takers.as_ref().map(|takers| takers.kept(id)).unwrap_or_default();
        cuts.extend(kept.into_iter().map(|run| run.max()));
        let (mut freed, mut after) = (0, self.passed(id, true));
        while freed < wanted {
            let stored: Vec<&Stored> =
                self.databases[&id].segments.range(Txid::following(after)..).map(|(_, s)| s).collect();
            let all: Vec<SegmentRef> = stored.iter().map(|s| s.to_ref()).collect();
            let left = all.iter().map(|s| s.bytes).sum();
            let page = &all[..all.len().min(MAX_RUN)];
            let Some(run) = next_run(page, left, &cuts, u64::MAX) else { return };
            let (inputs, stored) = (&all[run.clone()], &stored[run]);
            let meta = whole(inputs).expect("BUG: a run has segments");
            let open = |segment: &SegmentRef| {
                let found = stored.iter().find(|s| s.meta == segment.meta).expect("BUG: not of this run");
                Ok(Box::new(std::io::Cursor::new(found.chunks.concat())) as Box<dyn Read + Send>)
            };
            let mut merged = Vec::new();
            if merger.merge(inputs, meta, &open, &mut merged).is_err() {
                return;
            }
            let before: u64 = inputs.iter().map(|s| s.bytes).sum();
            let gain = before.saturating_sub(merged.len() as u64);
            let numbers: Vec<u64> = stored.iter().map(|s| s.number).collect();
            let given_up = cost(inputs, furthest);
            for number in numbers {
                self.remove(number);
            }
            self.appended += 1;
            self.usage.bytes += merged.len() as u64;
            let segment = Stored { meta, number: self.appended, chunks: vec![merged.into()] };
            self.order.insert(self.appended, (id, meta.range.min()));
            let database = self.databases.get_mut(&id).expect("BUG: just read");
            database.segments.insert(meta.range.min(), segment);
            let total = self.losses.entry(id).or_default();
            *total = total.and(given_up);
            self.usage.squashed += inputs.len() as u64;
            freed += gain;
            after = Some(meta.range.max());
            if gain < before / LEAST_GAIN {
                return;
            }
        }
    }
}

#[async_trait]
impl WalBuffer for MemoryBuffer {
    async fn register(
        &self,
        key: &DatabaseKey,
        lineage: Option<u64>,
        path: &str,
    ) -> Result<Registered, BufferError> {
        let mut state = self.open_state()?;
        if let Some(id) = state.ids.get(key).copied() {
            let database = state.databases.get_mut(&id).expect("BUG: name without a database");
            database.registered.path = path.to_owned();
            return Ok(database.registered.clone());
        }
        let id = DatabaseId(state.ids.len() as u64 + 1);
        let registered = Registered {
            id,
            key: key.clone(),
            lineage: lineage_for(lineage),
            position: None,
            time_ms: 0,
            path: path.to_owned(),
        };
        state.ids.insert(key.clone(), id);
        let database = Database {
            registered: registered.clone(),
            tail: Tail::default(),
            open: Vec::new(),
            segments: BTreeMap::new(),
        };
        state.databases.insert(id, database);
        Ok(registered)
    }

    async fn adopt(&self, id: DatabaseId, position: Pos, time_ms: i64) -> Result<Registered, BufferError> {
        let mut state = self.open_state()?;
        let database = state.databases.get_mut(&id).ok_or(BufferError::UnknownDatabase(id))?;
        check_adoption(&database.tail, &database.registered, position)?;
        database.tail = Tail::at(Some(position));
        database.registered.position = Some(position);
        database.registered.time_ms = time_ms;
        let registered = database.registered.clone();
        self.changed.send_modify(|count| *count += 1);
        Ok(registered)
    }

    fn find(&self, key: &DatabaseKey) -> Option<Registered> {
        let state = self.lock();
        let id = state.ids.get(key)?;
        state.databases.get(id).map(|d| d.registered.clone())
    }

    fn databases(&self) -> Vec<Registered> {
        let state = self.lock();
        state.ids.values().map(|id| state.databases[id].registered.clone()).collect()
    }

    async fn append(&self, chunk: Chunk) -> Result<(), BufferError> {
        let mut state = self.open_state()?;
        state.database(chunk.database)?.tail.check(&chunk)?;
        let bytes = chunk.data.len() as u64;
        let segment = state.database(chunk.database)?.tail.bytes_before(&chunk) + bytes;
        if segment > self.max_bytes {
            return Err(BufferError::SegmentTooLarge { bytes: segment, max: self.max_bytes });
        }
        if state.usage.bytes + bytes > self.max_bytes {
            state.make_room(self.max_bytes.saturating_sub(bytes), self.merger.as_deref());
            if state.usage.bytes + bytes > self.max_bytes {
                (state.usage.full, state.usage.refused) = (true, state.usage.refused + 1);
                return Err(BufferError::Full { used: state.usage.bytes, max: self.max_bytes });
            }
        }
        state.usage.full = false;
        let state = &mut *state;
        let database = state.databases.get_mut(&chunk.database).expect("BUG: checked above");
        if chunk.number == 0 {
            let dropped: u64 = database.open.drain(..).map(|c| c.len() as u64).sum();
            state.usage.bytes -= dropped;
        }
        state.usage.bytes += bytes;
        database.open.push(chunk.data.clone());
        if !database.tail.take(&chunk) {
            return Ok(());
        }
        database.registered.position = database.tail.position;
        database.registered.time_ms = chunk.meta.time_ms;
        state.appended += 1;
        let stored =
            Stored { meta: chunk.meta, number: state.appended, chunks: std::mem::take(&mut database.open) };
        state.usage.segments += 1;
        state.usage.syncs += 1;
        state.usage.segment_bytes += stored.bytes();
        let min = chunk.meta.range.min();
        database.segments.insert(min, stored);
        state.order.insert(state.appended, (chunk.database, min));
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn abandon(&self, id: DatabaseId) -> Result<(), BufferError> {
        let mut state = self.open_state()?;
        let state = &mut *state;
        let database = state.databases.get_mut(&id).ok_or(BufferError::UnknownDatabase(id))?;
        database.tail.open = None;
        let dropped: u64 = database.open.drain(..).map(|c| c.len() as u64).sum();
        state.usage.bytes -= dropped;
        Ok(())
    }

    fn read(
        &self,
        id: DatabaseId,
        after: Option<Txid>,
        max_bytes: u64,
    ) -> Result<Vec<SegmentRef>, BufferError> {
        let state = self.open_state()?;
        let database = state.database(id)?;
        let Some(next) = wanted(after, database.registered.position) else { return Ok(Vec::new()) };
        if !database.segments.contains_key(&next) {
            return Err(BufferError::Trimmed { database: id, txid: next });
        }
        let mut found: Vec<SegmentRef> = Vec::new();
        let (mut bytes, mut expected) = (0, next);
        for segment in database.segments.range(next..).map(|(_, s)| s) {
            bytes += segment.bytes();
            let follows = segment.meta.range.min() == expected;
            if !follows || (!found.is_empty() && bytes > max_bytes) {
                break;
            }
            expected = segment.meta.range.max().next();
            found.push(segment.to_ref());
        }
        Ok(found)
    }

    fn list(&self, id: DatabaseId, after: Option<Txid>, max: usize) -> Result<Vec<SegmentRef>, BufferError> {
        let state = self.open_state()?;
        let database = state.database(id)?;
        let start = Txid::following(after);
        Ok(database.segments.range(start..).take(max).map(|(_, s)| s.to_ref()).collect())
    }

    fn covering(&self, id: DatabaseId, txid: Txid) -> Result<Option<SegmentRef>, BufferError> {
        let state = self.open_state()?;
        let before = state.database(id)?.segments.range(..=txid).next_back();
        Ok(before.map(|(_, s)| s.to_ref()).filter(|segment| segment.meta.range.max() >= txid))
    }

    fn open(&self, id: DatabaseId, segment: &SegmentRef) -> Result<Box<dyn Read + Send>, BufferError> {
        let state = self.open_state()?;
        let min = segment.meta.range.min();
        match state.database(id)?.segments.get(&min) {
            Some(stored) if stored.meta == segment.meta => {
                Ok(Box::new(std::io::Cursor::new(stored.chunks.concat())))
            }
            _ => Err(BufferError::Trimmed { database: id, txid: min }),
        }
    }

    fn cursor(&self, lane: &DestinationName, database: DatabaseId) -> Option<Txid> {
        self.lock().cursors.get(&(lane.clone(), database)).copied()
    }

    fn set_cursor(
        &self,
        lane: &DestinationName,
        database: DatabaseId,
        txid: Txid,
    ) -> Result<(), BufferError> {
        let mut state = self.open_state()?;
        state.database(database)?;
        state.cursors.insert((lane.clone(), database), txid);
        Ok(())
    }

    fn clear_cursor(&self, lane: &DestinationName, database: DatabaseId) -> Result<(), BufferError> {
        let mut state = self.open_state()?;
        state.database(database)?;
        state.cursors.remove(&(lane.clone(), database));
        Ok(())
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    async fn trim(&self, takers: Arc<dyn Takers>) -> Result<(), BufferError> {
        let mut state = self.open_state()?;
        state.takers = Some(takers);
        state.trim(self.max_bytes / 5 * 4);
        Ok(())
    }

    fn usage(&self) -> Usage {
        Usage { max_bytes: self.max_bytes, ..self.lock().usage }
    }

    fn given_up(&self, database: DatabaseId) -> GivenUp {
        self.lock().losses.get(&database).copied().unwrap_or_default()
    }

    async fn close(&self) -> Result<(), BufferError> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::contract::{Subject, suite};
    use crate::buffer::full::{Fold, bound_suite, given_up_suite, kept_suite, oversized_suite, squash_suite};

    struct Memory(Arc<MemoryBuffer>);

    #[async_trait]
    impl Subject for Memory {
        fn buffer(&self) -> Arc<dyn WalBuffer> {
            Arc::clone(&self.0) as Arc<dyn WalBuffer>
        }

        async fn reopen(&mut self) {
            self.0 = Arc::new(self.0.reopen());
        }

        async fn squash(&self, database: DatabaseId) {
            self.0.squash_one(database);
        }
    }

    #[tokio::test]
    async fn keeps_the_contract() {
        suite(&mut Memory(Arc::new(MemoryBuffer::new(1 << 30)))).await;
    }

    #[tokio::test]
    async fn gives_up_restore_points_and_no_data() {
        let buffer = MemoryBuffer::squashing(4 << 20, Arc::new(Fold));
        squash_suite(&mut Memory(Arc::new(buffer)), 4 << 20).await;
    }

    #[tokio::test]
    async fn keeps_what_somebody_waits_for() {
        let buffer = || Memory(Arc::new(MemoryBuffer::squashing(4 << 20, Arc::new(Fold))));
        kept_suite(&mut buffer(), 4 << 20).await;
        given_up_suite(&mut buffer(), 4 << 20).await;
    }

    #[tokio::test]
    async fn refuses_what_can_never_pass() {
        oversized_suite(&mut Memory(Arc::new(MemoryBuffer::new(4 << 20))), 4 << 20).await;
    }

    #[tokio::test]
    async fn keeps_its_bound() {
        bound_suite(&mut Memory(Arc::new(MemoryBuffer::new(4 << 20))), 4 << 20).await;
    }
}
