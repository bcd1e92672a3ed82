//! Giving space back. Cheapest first: the oldest log file, when every lane has taken all that lies in it; then, for an
//! append that finds no room, any file that nobody needs, and nearly dead ones, whose rest is copied forward; then what
//! [`WhenFull::Squash`] allows.
//!
//! # Invariants
//! - A file goes only when each segment in it was taken by those that must have it, or another segment in the log stands
//!   for it, on disk and known to the index.
//! - The database with the largest backlog pays first.
//! - Runs that somebody waits to restore ([`Takers::kept`]) stay as well, until nothing else would make room.

mod contents;
pub(super) mod squash;
mod survey;

use super::cursor::CursorTable;
use super::flusher::Flusher;
use super::index::Index;
use super::log::file::{Files, is_damage};
use super::log::reader::SegmentReader;
use super::rewrite::Rewriter;
use super::squash::{Losses, Merger, WhenFull};
use super::{Bounds, BufferError, DatabaseId, Takers, is_kept};
use contents::{Contents, Fate};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use survey::Survey;
use walhub_common::{Txid, TxidRange};

/// Time between two looks over the whole index that led to nothing.
const PAUSE: Duration = Duration::from_millis(500);

/// Decides and does it. One at a time.
#[derive(Debug, Default)]
pub(super) struct Trimmer {
    takers: Option<Arc<dyn Takers>>,
    /// What the oldest file holds, so that asking again costs nothing.
    oldest: Option<Oldest>,
    /// When a look over everything led to nothing, and how long it took.
    exhausted: Option<(Instant, Duration)>,
}

#[derive(Debug)]
struct Oldest {
    contents: Contents,
    /// The last transaction of each database that lies in it.
    last: BTreeMap<DatabaseId, Txid>,
    /// The counts of cursor moves and of changes of the takers at which it was still needed, by whether one of them is
    /// enough.
    needed_at: [Option<(u64, u64)>; 2],
}

/// What a trim looks at.
#[derive(Debug)]
pub(super) struct Trimmed<'a> {
    /// The log files.
    pub(super) files: &'a Files,
    /// Where segments lie.
    pub(super) index: &'a Index,
    /// Where lanes stand.
    pub(super) cursors: &'a CursorTable,
    /// The way into the log.
    pub(super) flusher: &'a Flusher,
    /// Sizes.
    pub(super) bounds: Bounds,
    /// What may be done at the bound.
    pub(super) when_full: WhenFull,
    /// Makes one segment of several.
    pub(super) merger: &'a dyn Merger,
    /// What that has cost.
    pub(super) losses: &'a Mutex<Losses>,
    /// Bytes of segments may lie outside of the log: merging such a segment would make no room.
    pub(super) outside: bool,
}

/// Whose having taken a segment is enough for it to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Enough {
    /// All lanes of the database.
    All,
    /// One that answers: the others get it from there.
    One,
}

impl Trimmed<'_> {
    fn total(&self) -> u64 {
        self.files.total_bytes()
    }

    /// Up to where segments of a database may go.
    fn passed(&self, takers: &dyn Takers, id: DatabaseId, enough: Enough) -> Option<Txid> {
        let lanes = takers.of(id);
        let at = self.cursors.of(lanes.iter(), id);
        let all = at.iter().copied().min().flatten();
        match enough {
            Enough::All => all,
            Enough::One => {
                let answers = lanes.iter().zip(&at).filter(|(lane, _)| takers.answers(lane));
                answers.filter_map(|(_, at)| *at).max().max(all)
            }
        }
    }

    /// Files that may go, with their sizes: those that the writer has left and sled knows all of.
    fn candidates(&self) -> Vec<(u64, u64)> {
        self.files.before(self.flusher.oldest_open().min(self.index.moved_file()))
    }

    /// Bytes that may be written to make room.
    fn budget(&self) -> u64 {
        let room = self.bounds.max.saturating_sub(self.total() + self.flusher.waiting_bytes(0));
        room / 4 * 3
    }
}

impl Trimmer {
    /// Sets who must have passed a file.
    pub(super) fn set_takers(&mut self, takers: Arc<dyn Takers>) {
        if self.takers.as_ref().is_none_or(|before| !Arc::ptr_eq(before, &takers)) {
            self.takers = Some(takers);
            self.exhausted = None;
            if let Some(oldest) = &mut self.oldest {
                oldest.needed_at = [None; 2];
            }
        }
    }

    /// Unlinks old files that every lane has passed until at most `target` bytes are left, or the next one is still
    /// needed: then false.
    pub(super) fn trim(&mut self, on: &Trimmed<'_>, target: u64) -> Result<bool, BufferError> {
        self.unlink_oldest(on, target, Enough::All)
    }

    /// Does what it takes to have at most `target` bytes left; false when that cannot be.
    pub(super) fn make_room(&mut self, on: &Trimmed<'_>, target: u64) -> Result<bool, BufferError> {
        if self.unlink_oldest(on, target, Enough::All)? {
            return Ok(true);
        }
        let Some(takers) = self.takers.clone() else { return Ok(false) };
        let enough = match on.when_full {
            WhenFull::Block => Enough::All,
            WhenFull::Squash => Enough::One,
        };
        if enough == Enough::One && self.unlink_oldest(on, target, enough)? {
            return Ok(true);
        }
        if self.exhausted.is_some_and(|(at, took)| at.elapsed() < PAUSE.max(took * 4)) {
            return Ok(false);
        }
        let (started, mut gave_up) = (Instant::now(), false);
        loop {
            on.index.move_segments()?;
            let survey = survey(on, &*takers, enough)?;
            let mut progress = unlink_nearly_dead(on, &*takers, &survey, enough, target)?;
            if on.total() <= target {
                self.exhausted = None;
                return Ok(true);
            }
            if !progress && on.when_full == WhenFull::Squash {
                progress = squash::squash(on, &*takers, &survey.backlog())?;
            }
            if !progress && survey.keeps() && !std::mem::replace(&mut gave_up, true) {
                takers.give_up_kept();
                progress = true;
            }
            if !progress {
                self.exhausted = Some((Instant::now(), started.elapsed()));
                return Ok(false);
            }
        }
    }

    fn unlink_oldest(&mut self, on: &Trimmed<'_>, target: u64, enough: Enough) -> Result<bool, BufferError> {
        let Some(takers) = self.takers.clone() else { return Ok(on.total() <= target) };
        while on.total() > target {
            let Some(oldest) = on.files.oldest() else { break };
            if oldest >= on.flusher.oldest_open() {
                break;
            }
            // What sled does not know yet cannot be forgotten there.
            if oldest >= on.index.moved_file() {
                on.index.move_segments()?;
                if oldest >= on.index.moved_file() {
                    break;
                }
            }
            if !self.oldest_passed(on, oldest, &*takers, enough)? {
                break;
            }
            let held = self.oldest.take().expect("BUG: the file was looked at");
            unlink(on, &held.contents, enough)?;
        }
        Ok(on.total() <= target)
    }

    fn oldest_passed(
        &mut self,
        on: &Trimmed<'_>,
        file: u64,
        takers: &dyn Takers,
        enough: Enough,
    ) -> Result<bool, BufferError> {
        if self.oldest.as_ref().is_none_or(|oldest| oldest.contents.file != file) {
            let Some(contents) = contents(on, file)? else { return Ok(false) };
            let last = contents.last(on.index)?;
            self.oldest = Some(Oldest { contents, last, needed_at: [None; 2] });
        }
        let oldest = self.oldest.as_mut().expect("BUG: just set");
        let at = (on.cursors.moves(), takers.revision());
        let needed_at = &mut oldest.needed_at[enough as usize];
        if *needed_at == Some(at) {
            return Ok(false);
        }
        let passed = oldest.last.iter().all(|(id, txid)| on.passed(takers, *id, enough) >= Some(*txid));
        let passed = passed && !holds_kept(on, takers, &oldest.contents)?;
        if !passed {
            *needed_at = Some(at);
        }
        Ok(passed)
    }
}

/// Lanes are given by what `passed` says of the whole database; `kept` is asked segment by segment.
struct Terms {
    passed: Option<Txid>,
    kept: Vec<TxidRange>,
}

impl Terms {
    fn of(on: &Trimmed<'_>, takers: &dyn Takers, id: DatabaseId, enough: Enough) -> Terms {
        Terms { passed: on.passed(takers, id, enough), kept: takers.kept(id) }
    }

    /// Who needs a segment of these transactions.
    fn need(&self, range: TxidRange) -> Option<Need> {
        match () {
            () if Some(range.max()) > self.passed => Some(Need::Lane),
            () if is_kept(&self.kept, range) => Some(Need::Kept),
            () => None,
        }
    }
}

/// Why a segment stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Need {
    /// A lane has not taken it.
    Lane,
    /// It leads to a point that is awaited.
    Kept,
}

/// Whether a part of the file that lies nowhere else leads to a point that is awaited.
fn holds_kept(on: &Trimmed<'_>, takers: &dyn Takers, contents: &Contents) -> Result<bool, BufferError> {
    let mut kept: BTreeMap<DatabaseId, Vec<TxidRange>> = BTreeMap::new();
    for part in &contents.parts {
        let runs = kept.entry(part.database).or_insert_with(|| takers.kept(part.database));
        if is_kept(runs, part.range) && part.fate(on.index)? != Fate::Elsewhere {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Counts what is needed. sled must know everything.
fn survey(on: &Trimmed<'_>, takers: &dyn Takers, enough: Enough) -> Result<Survey, BufferError> {
    let mut survey = Survey::default();
    let mut current: Option<(DatabaseId, Terms)> = None;
    on.index.every(|id, segment| {
        if current.as_ref().is_none_or(|(of, _)| *of != id) {
            current = Some((id, Terms::of(on, takers, id, enough)));
        }
        let need = current.as_ref().and_then(|(_, terms)| terms.need(segment.meta.range));
        match need.filter(|_| on.files.holds(segment.place.first.0)) {
            Some(Need::Lane) => survey.count(id, &segment),
            Some(Need::Kept) => survey.count_kept(&segment),
            None => {}
        }
        true
    })?;
    Ok(survey)
}

/// What lies in a file; `None` when its start is damaged, as recovery has said.
fn contents(on: &Trimmed<'_>, file: u64) -> Result<Option<Contents>, BufferError> {
    match on.files.get(file) {
        Ok(Some(log)) => Contents::of(&log).map(Some),
        Ok(None) => Ok(Some(Contents { file, parts: Vec::new() })),
        Err(e) if is_damage(&e) => Ok(None),
        Err(source) => Err(BufferError::Io { doing: "open a log file", source }),
    }
}

/// Segments in a file that lie nowhere else and are needed; `None` when it cannot be told of one.
fn needed(
    on: &Trimmed<'_>,
    takers: &dyn Takers,
    contents: &Contents,
    enough: Enough,
) -> Result<Option<Vec<contents::Part>>, BufferError> {
    let mut terms: BTreeMap<DatabaseId, Terms> = BTreeMap::new();
    let mut needed = Vec::new();
    for part in &contents.parts {
        let id = part.database;
        let terms = terms.entry(id).or_insert_with(|| Terms::of(on, takers, id, enough));
        // What began in a file that is gone went with it.
        if terms.need(part.range).is_none() || !on.files.holds(part.first.0) {
            continue;
        }
        match part.fate(on.index)? {
            Fate::Here => needed.push(*part),
            Fate::Elsewhere => {}
            Fate::Unknown => {
                tracing::warn!(file = contents.file, database = id.0, range = %part.range, "the index does not know a segment, its file stays");
                return Ok(None);
            }
        }
    }
    Ok(Some(needed))
}

fn unlink(on: &Trimmed<'_>, contents: &Contents, enough: Enough) -> Result<(), BufferError> {
    let file = contents.file;
    on.files.unlink(file).map_err(|source| BufferError::Io { doing: "unlink a log file", source })?;
    let gone: Vec<_> =
        contents.parts.iter().map(|part| (part.database, part.range.min(), part.first)).collect();
    on.index.forget(&gone)?;
    tracing::debug!(file, segments = gone.len(), ?enough, "gave a log file back");
    Ok(())
}

/// Gives files back of which little or nothing is needed; that is copied to the end of the log before. True when one
/// went.
fn unlink_nearly_dead(
    on: &Trimmed<'_>,
    takers: &dyn Takers,
    survey: &Survey,
    enough: Enough,
    target: u64,
) -> Result<bool, BufferError> {
    let mut progress = false;
    for (file, bytes) in survey.nearly_dead(&on.candidates()) {
        if on.total() <= target || bytes > on.budget() {
            break;
        }
        let Some(contents) = contents(on, file)? else {
            // It can be read no more, but what the index knows to be in it may be looked at by hand; when that is nothing,
            // or needed no more, it goes.
            if bytes == 0 {
                tracing::warn!(file, "a log file that is damaged at its start goes: nothing in it is needed");
                unlink(on, &Contents { file, parts: Vec::new() }, enough)?;
                progress = true;
            }
            continue;
        };
        let Some(rest) = needed(on, takers, &contents, enough)? else { continue };
        if !rest.is_empty() {
            let mut rewriter = Rewriter::new(on.flusher);
            for part in &rest {
                copy(on, part, &mut rewriter)?;
            }
            rewriter.finish()?;
            on.index.move_segments()?;
            tracing::debug!(file, segments = rest.len(), bytes, "copied the rest of a log file forward");
        }
        if needed(on, takers, &contents, enough)?.is_some_and(|needed| needed.is_empty()) {
            unlink(on, &contents, enough)?;
            progress = true;
        }
    }
    Ok(progress)
}

fn copy(on: &Trimmed<'_>, part: &contents::Part, rewriter: &mut Rewriter<'_>) -> Result<(), BufferError> {
    let Some(segment) = on.index.get(part.database, part.range.min())? else { return Ok(()) };
    let mut reader = match SegmentReader::open(on.files, part.database, &segment) {
        Ok(reader) => reader,
        Err(error @ BufferError::Corrupt { .. }) => return damaged(part, &error),
        Err(error) => return Err(error),
    };
    let mut sink = rewriter.segment(part.database, segment.meta);
    if let Err(source) = io::copy(&mut reader, &mut sink) {
        if let Some(failure) = sink.failure() {
            return Err(failure);
        }
        return damaged(part, &source);
    }
    sink.end().map(drop)
}

/// A damaged segment is not copied; its file stays, and the lanes say what they make of it.
fn damaged(part: &contents::Part, error: &dyn std::fmt::Display) -> Result<(), BufferError> {
    tracing::error!(database = part.database.0, range = %part.range, %error, "a buffered segment is damaged, its log file stays");
    Ok(())
}
