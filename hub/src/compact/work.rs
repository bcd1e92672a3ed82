//! The one worker: which database is due, what is made of it, and what a failure means. The file
//! is long because the steps of one database share its state.

use super::error::WorkError;
use super::publish::{Output, Publisher};
use super::report::Report;
use super::sources;
use super::state::{Known, State};
use super::tail::Tails;
use super::{jitter, millis, takes};
use crate::buffer::{BufferError, DatabaseId, Registered, SegmentMeta, WalBuffer};
use crate::copies::{Board, LaneId, Place, Row};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::{LtxError, Provenance, Stamp};
use walhub_common::task::TaskGroup;
use walhub_common::{DatabaseKey, Level, Txid, TxidRange};
use walhub_store::compact::windows::{self, GRACE_MS, Piece, Window};
use walhub_store::compact::{CompactError, Input, Made, compact};
use walhub_store::destinations::{FileKey, PutMeta};

/// Free disk space that a file in the making leaves.
const RESERVE_BYTES: u64 = 256 << 20;
const FIRST_PAUSE_MS: i64 = 15_000;
const LONGEST_PAUSE_MS: i64 = 3_600_000;

/// What is to be made.
struct Job {
    level: Level,
    range: TxidRange,
    time_ms: i64,
    inputs: Vec<Input>,
    input_bytes: u64,
}

struct Entry {
    seen: Option<Txid>,
    due_ms: Option<i64>,
    failures: u32,
    /// A state was there before.
    known: bool,
    state: Option<State>,
}

/// See the module doc.
pub(super) struct Worker {
    buffer: Arc<dyn WalBuffer>,
    board: Arc<Board>,
    report: Arc<Report>,
    levels: Vec<Duration>,
    folder: PathBuf,
    stop: CancellationToken,
    tails: Arc<Tails>,
    publisher: Publisher,
    entries: HashMap<DatabaseId, Entry>,
    due: BTreeSet<(i64, DatabaseId)>,
    made: u64,
    /// When the first look was.
    started_ms: Option<i64>,
}

impl Worker {
    pub(super) fn new(
        buffer: Arc<dyn WalBuffer>,
        board: Arc<Board>,
        levels: Vec<Duration>,
        folder: PathBuf,
        tasks: TaskGroup,
        tails: Tails,
        abort: CancellationToken,
    ) -> Self {
        let (report, stop) = (board.compaction().clone(), tasks.token().clone());
        let tails = Arc::new(tails);
        let publisher = Publisher::new(board.clone(), report.clone(), tails.clone(), tasks, abort);
        Self {
            buffer,
            board,
            report,
            levels,
            folder,
            stop,
            tails,
            publisher,
            entries: HashMap::new(),
            due: BTreeSet::new(),
            made: 0,
            started_ms: None,
        }
    }

    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.buffer.changed()
    }

    #[cfg(any(test, feature = "testutil"))]
    pub(super) fn unfinished(&self) -> watch::Receiver<usize> {
        self.publisher.unfinished()
    }

    /// Notes the databases that did something. The first time, those that did recently: what was left open before a
    /// restart is closed, and a fleet that sleeps is left alone.
    pub(super) fn look(&mut self, now_ms: i64) {
        self.started_ms.get_or_insert(now_ms);
        let longest = self.levels.last().copied().unwrap_or_default();
        let snapshots = self.board.roster().places().iter().map(|p| p.entry.snapshot_interval).max();
        let recent_ms = now_ms - millis(longest.max(snapshots.unwrap_or_default()).saturating_mul(2));
        for database in self.buffer.databases() {
            let Some(position) = database.position else { continue };
            let fresh = Entry { seen: None, due_ms: None, failures: 0, known: false, state: None };
            let entry = self.entries.entry(database.id).or_insert(fresh);
            let old = entry.seen.is_none() && database.time_ms < recent_ms;
            if entry.seen.replace(position.txid) == Some(position.txid) || old || entry.failures > 0 {
                continue;
            }
            let first = self.levels.first().copied().unwrap_or(Duration::from_secs(60));
            let window_ms = millis(first).max(1);
            let end_ms = (database.time_ms.div_euclid(window_ms) + 1).saturating_mul(window_ms);
            self.schedule(database.id, end_ms + GRACE_MS + jitter(&database.key, first));
        }
    }

    fn schedule(&mut self, id: DatabaseId, at_ms: i64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if let Some(before) = entry.due_ms {
            if before <= at_ms {
                return;
            }
            self.due.remove(&(before, id));
        }
        entry.due_ms = Some(at_ms);
        self.due.insert((at_ms, id));
    }

    /// Serves every database that is due; when the next one is.
    pub(super) async fn pass(&mut self, now_ms: i64) -> Option<i64> {
        while let Some((at_ms, id)) = self.due.first().copied() {
            if at_ms > now_ms || self.stop.is_cancelled() {
                return Some(at_ms);
            }
            self.due.pop_first();
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.due_ms = None;
            let state = entry.state.take();
            let known = std::mem::replace(&mut entry.known, true);
            let Some(database) = self.buffer.databases().into_iter().find(|database| database.id == id)
            else {
                continue;
            };
            let mut state = match state {
                Some(state) => state,
                None => self.load(&database, known, now_ms).await,
            };
            let served = self.serve(&database, &mut state, now_ms).await;
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            match served {
                Ok(next_ms) => {
                    (entry.state, entry.failures) = (Some(state), 0);
                    if let Some(next_ms) = next_ms {
                        self.schedule(id, next_ms.max(now_ms + 1));
                    }
                }
                Err(_) if self.stop.is_cancelled() => return None,
                Err(error) => {
                    // What is wrong with files is learned anew; nothing else is a reason to list again.
                    let keep = matches!(error, WorkError::NoRoom { .. } | WorkError::Buffer(_));
                    entry.state = keep.then_some(state);
                    self.failed(&database, &error, now_ms);
                }
            }
        }
        None
    }

    async fn load(&self, database: &Registered, known: bool, now_ms: i64) -> State {
        let Registered { id, key, .. } = database;
        // What began under our eyes has no files that we do not know of.
        let oldest = self.buffer.list(*id, None, 1).ok().and_then(|found| found.into_iter().next());
        let born_here = |oldest: &SegmentMeta| {
            oldest.range.min() == Txid::FIRST && self.started_ms.is_some_and(|at| oldest.time_ms >= at)
        };
        if !known && oldest.is_some_and(|oldest| born_here(&oldest.meta)) {
            return State::new(self.levels.len());
        }
        let row = self.board.row(*id, key);
        let places = &row.terms.places;
        let state = State::load(self.levels.len(), key, places, now_ms, &self.stop).await;
        self.leave_alone(key, &row).await;
        for (lane, (snapshot, time_ms)) in &state.snapshots {
            if let Some(txid) = snapshot {
                self.report.holds(*id, *lane, Level::SNAPSHOT, *txid, *time_ms);
            }
        }
        state
    }

    /// What a hub that was killed left undone.
    async fn leave_alone(&self, key: &DatabaseKey, row: &Row) {
        for place in &row.terms.places {
            let Some(held) = row.held(place.lane) else { continue };
            if let Err(error) = self.tails.part(place, key, held).await {
                tracing::debug!(database = %key, %error, "the newest transaction does not lie alone yet");
            }
        }
    }

    fn failed(&mut self, database: &Registered, error: &WorkError, now_ms: i64) {
        let Some(entry) = self.entries.get_mut(&database.id) else { return };
        if entry.failures == 0 {
            tracing::warn!(database = %database.key, %error, "compaction does not get on, it is tried again");
        }
        entry.failures += 1;
        let pause_ms = (FIRST_PAUSE_MS << (entry.failures - 1).min(10)).min(LONGEST_PAUSE_MS);
        self.report.failed(format!("{}: {error}", database.key));
        self.schedule(database.id, now_ms + pause_ms);
    }

    /// Everything that is due of one database; when more is.
    async fn serve(
        &mut self,
        database: &Registered,
        state: &mut State,
        now_ms: i64,
    ) -> Result<Option<i64>, WorkError> {
        let Registered { id, key, .. } = database;
        self.begin(database, state)?;
        let mut next_ms: Option<i64> = None;
        // A level that nobody takes is not made; the next one is made of what is below it.
        let taken = |at: &usize| !self.takers(*id, key, Some(self.levels[*at])).is_empty();
        let used: Vec<usize> = (0..self.levels.len()).filter(taken).collect();
        for (nth, at) in used.iter().copied().enumerate() {
            let below = nth.checked_sub(1).map(|nth| used[nth]);
            let interval = self.levels[at];
            let late_ms = jitter(key, interval);
            loop {
                let (pieces, files) = self.pieces(*id, state, (at, below), now_ms)?;
                match windows::next(&pieces, interval, now_ms - late_ms) {
                    Window::Empty => break,
                    Window::Later(at_ms) => {
                        let at_ms = at_ms + late_ms;
                        next_ms = Some(next_ms.map_or(at_ms, |next| next.min(at_ms)));
                        break;
                    }
                    Window::Due { pieces: count, range, time_ms } => {
                        let window = &files[..count.min(files.len())];
                        self.window(database, state, (at, below), window, range, time_ms).await?;
                    }
                }
            }
        }
        if let Some(at_ms) = self.snapshot(database, state, now_ms).await? {
            next_ms = Some(next_ms.map_or(at_ms, |next| next.min(at_ms)));
        }
        Ok(next_ms)
    }

    /// Where levels begin: behind the first image of the database, which is no window's change. Its copy on level 0 is the
    /// first snapshot, as far as the interval is concerned.
    fn begin(&self, database: &Registered, state: &mut State) -> Result<(), WorkError> {
        let oldest = self.buffer.list(database.id, None, 1)?.into_iter().next();
        let Some(oldest) = oldest else { return Ok(()) };
        if oldest.meta.range.min() == Txid::FIRST {
            for place in &self.board.row(database.id, &database.key).terms.places {
                state
                    .snapshots
                    .entry(place.lane)
                    .or_insert_with(|| (Some(oldest.meta.range.max()), oldest.meta.time_ms));
            }
        }
        if state.done.first().is_some_and(Option::is_none) {
            let behind = match oldest.meta.range.min() {
                Txid::FIRST => Some(oldest.meta.range.max()),
                later => Txid::new(later.get() - 1),
            };
            if let Some(behind) = behind {
                state.restart_behind(behind);
            }
        }
        Ok(())
    }

    /// What the level with index `at` may be made of, in order.
    fn pieces(
        &self,
        id: DatabaseId,
        state: &State,
        (at, below): (usize, Option<usize>),
        now_ms: i64,
    ) -> Result<(Vec<Piece>, Vec<Known>), BufferError> {
        if let Some(below) = below {
            let files = state.files[below].clone();
            return Ok((files.iter().map(|known| known.piece).collect(), files));
        }
        let (window_ms, after) = (millis(self.levels[at]), state.done[at]);
        let first = self.buffer.list(id, after, 1)?.into_iter().next();
        let Some(first) = first else { return Ok((Vec::new(), Vec::new())) };
        let until_ms = (first.meta.time_ms.div_euclid(window_ms) + 1).saturating_mul(window_ms).min(now_ms);
        let segments = sources::segments(&*self.buffer, id, after, Some(until_ms))?;
        let piece = |range, time_ms| Piece { range, time_ms };
        Ok((segments.iter().map(|s| piece(s.meta.range, s.meta.time_ms)).collect(), Vec::new()))
    }

    /// Makes the file of one window.
    async fn window(
        &mut self,
        database: &Registered,
        state: &mut State,
        (at, below): (usize, Option<usize>),
        files: &[Known],
        mut range: TxidRange,
        mut time_ms: i64,
    ) -> Result<(), WorkError> {
        let level = Level::new(at as u8 + 1).expect("BUG: at most 8 levels");
        let Registered { id, key, .. } = database;
        loop {
            let what = format!("level {level} file {range}");
            let segments = sources::buffered(&*self.buffer, *id, range)?;
            let places = sources::places(&self.board, *id, key);
            // Files of the level below are smaller than all the segments in them, but only a folder is as near.
            let holder = below.and_then(|below| Some((below, sources::holder(&places, files)?)));
            let (inputs, input_bytes) = match (holder, segments) {
                (Some((below, place)), segments)
                    if segments.is_none() || place.destination.kind() == "file" =>
                {
                    let below = Level::new(below as u8 + 1).expect("BUG: at most 8 levels");
                    if let Some(last) = files.last().filter(|last| !last.exact) {
                        time_ms = sources::time_of(&place, key, below, last, &self.stop).await?;
                    }
                    let bytes = files.iter().map(|known| known.bytes).sum();
                    (sources::from_destination(&place, key, below, files, &self.stop), bytes)
                }
                (_, Some(segments)) => {
                    time_ms = segments.last().map_or(time_ms, |last| last.meta.time_ms);
                    let bytes = segments.iter().map(|segment| segment.bytes).sum();
                    (sources::from_buffer(&self.buffer, *id, &segments), bytes)
                }
                _ => return Err(WorkError::NoInputs(what)),
            };
            let made = self.make(database, Job { level, range, time_ms, inputs, input_bytes }).await;
            let (made, path) = match made {
                // A whole new image of the database: a snapshot stands for it. The levels end before it and go on behind it.
                Err(WorkError::Compact {
                    error: CompactError::Ltx(LtxError::PageSizeChange { first, second }),
                    ..
                }) => {
                    if below.is_some() || first.max() >= range.max() || first.max() < range.min() {
                        state.restart_behind(second.max());
                        return Ok(());
                    }
                    range = TxidRange::new(range.min(), first.max()).unwrap_or(range);
                    continue;
                }
                made => made?,
            };
            let page_size = made.header.page_size;
            if state.page_size.replace(page_size).is_some_and(|before| before != page_size) {
                let _ = std::fs::remove_file(&path);
                state.restart_behind(range.max());
                return Ok(());
            }
            let lanes = self.takers(*id, key, Some(self.levels[at]));
            let output = self.output(database, level, &made, path);
            self.send(&lanes, &output);
            state.done[at] = Some(range.max());
            if let Some(below) = below {
                state.files[below].retain(|known| known.piece.range.min() > range.max());
            }
            if at + 1 < self.levels.len() {
                state.files[at].push(Known {
                    piece: Piece { range, time_ms },
                    bytes: made.bytes,
                    exact: true,
                    holders: output.holders.clone(),
                });
            }
            return Ok(());
        }
    }

    /// Lanes that serve a database and take this level (`None`: snapshots).
    fn takers(&self, id: DatabaseId, key: &DatabaseKey, interval: Option<Duration>) -> Vec<LaneId> {
        let row = self.board.row(id, key);
        let takers = row.terms.places.iter().filter(|place| interval.is_none_or(|i| takes(place, i)));
        takers.map(|place| place.lane).collect()
    }

    /// A snapshot for the destinations that are due; when the next one is.
    async fn snapshot(
        &mut self,
        database: &Registered,
        state: &mut State,
        now_ms: i64,
    ) -> Result<Option<i64>, WorkError> {
        let Registered { id, key, position, .. } = database;
        let newest = match state.done.iter().max() {
            Some(done) => *done,
            None => position.map(|position| position.txid),
        };
        let Some(newest) = newest else { return Ok(None) };
        let row = self.board.row(*id, key);
        let (mut due, mut next_ms): (Vec<LaneId>, Option<i64>) = (Vec::new(), None);
        for place in &row.terms.places {
            let (snapshot, since_ms) = state.snapshots.get(&place.lane).copied().unwrap_or((None, i64::MIN));
            if snapshot >= Some(newest) {
                continue;
            }
            let interval = place.entry.snapshot_interval;
            let at_ms = since_ms
                .saturating_add(millis(interval))
                .saturating_add(jitter(key, interval.min(Duration::from_secs(3600))));
            if at_ms <= now_ms {
                due.push(place.lane);
            } else {
                next_ms = Some(next_ms.map_or(at_ms, |next| next.min(at_ms)));
            }
        }
        if due.is_empty() {
            return Ok(next_ms);
        }
        let mut failed = None;
        for place in sources::places(&self.board, *id, key) {
            match self.whole(database, &place, newest).await {
                Ok(Some(output)) => {
                    let txid = output.key.range.max();
                    for lane in self.send(&due, &output) {
                        state.snapshots.insert(lane, (Some(txid), now_ms));
                    }
                    return Ok(next_ms);
                }
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| WorkError::NoInputs(format!("a snapshot of {newest}"))))
    }

    /// A snapshot from what `place` and the buffer hold.
    async fn whole(
        &mut self,
        database: &Registered,
        place: &Arc<Place>,
        newest: Txid,
    ) -> Result<Option<Arc<Output>>, WorkError> {
        let mut oldest = Txid::FIRST;
        loop {
            let whole =
                sources::whole(&self.buffer, place, &database.key, newest, oldest, &self.stop).await?;
            let Some(whole) = whole else { return Ok(None) };
            let Some(range) = TxidRange::new(Txid::FIRST, whole.reached) else { return Ok(None) };
            let sources::Whole { time_ms, inputs, bytes: input_bytes, .. } = whole;
            let job = Job { level: Level::SNAPSHOT, range, time_ms, inputs, input_bytes };
            match self.make(database, job).await {
                Ok((made, path)) => return Ok(Some(self.output(database, Level::SNAPSHOT, &made, path))),
                // What was before the new image is of no use: the snapshot that the lane put for it is.
                Err(WorkError::Compact {
                    error: CompactError::Ltx(LtxError::PageSizeChange { second, .. }),
                    ..
                }) if second.max() > oldest => oldest = second.max(),
                Err(error) => return Err(error),
            }
        }
    }

    /// The file of a job, on the hub's disk.
    async fn make(&mut self, database: &Registered, job: Job) -> Result<(Made, PathBuf), WorkError> {
        let Job { level, range, time_ms, inputs, input_bytes } = job;
        let what = format!("level {level} file {range}");
        self.room(&what, input_bytes)?;
        self.made += 1;
        let path = self.folder.join(format!("{}.ltx", self.made));
        let stamp =
            Stamp { timestamp_ms: time_ms, node_id: database.lineage, whole: level == Level::SNAPSHOT };
        let (out, stop) = (path.clone(), self.stop.clone());
        let made = tokio::task::spawn_blocking(move || compact(inputs, stamp, &out, &stop)).await;
        let made = made.map_err(|error| WorkError::Internal(error.to_string()))?;
        let made = made.map_err(|error| WorkError::Compact { what: what.clone(), error })?;
        if made.header.range != range {
            let _ = std::fs::remove_file(&path);
            return Err(WorkError::Internal(format!("{what} came out as {}", made.header.range)));
        }
        self.report.count(|totals| {
            match level {
                Level::SNAPSHOT => totals.snapshots += 1,
                _ => totals.files += 1,
            }
            totals.bytes += made.bytes;
        });
        tracing::debug!(database = %database.key, %level, %range, bytes = made.bytes, "compacted");
        Ok((made, path))
    }

    fn room(&self, what: &str, needed: u64) -> Result<(), WorkError> {
        let stat = rustix::fs::statvfs(&self.folder);
        let free = stat.map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        if free < needed.saturating_add(RESERVE_BYTES) {
            return Err(WorkError::NoRoom { what: what.to_owned(), needed, free });
        }
        Ok(())
    }

    fn output(&self, database: &Registered, level: Level, made: &Made, path: PathBuf) -> Arc<Output> {
        let post = made.header.provenance.map(|Provenance { post, .. }| post);
        Arc::new(Output {
            database: database.id,
            key: FileKey { database: database.key.clone(), level, range: made.header.range },
            path,
            bytes: made.bytes,
            meta: PutMeta { time_ms: made.header.timestamp_ms, post },
            holders: Arc::default(),
        })
    }

    /// Those that take a file.
    fn send(&mut self, lanes: &[LaneId], output: &Arc<Output>) -> Vec<LaneId> {
        lanes.iter().copied().filter(|lane| self.publisher.send(*lane, output.clone())).collect()
    }
}
