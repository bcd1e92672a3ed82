//! One drill: list ▸ plan ▸ read ▸ apply ▸ compare ▸ check; and what is damaged, object by object.

use super::checks::{self, Checks};
use super::ledger::Book;
use super::measured::{Measured, Meter};
use super::model::{Copy, Drill, Verdict};
use super::rules::Rules;
use crate::buffer::{Registered, WalBuffer};
use crate::copies::{Board, Place};
use crate::repair::inspect::{Flaw, inspect};
use crate::repair::{self, Damage, Mended, Repairer};
use crate::retain::Pins;
use futures_util::StreamExt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::restore::{Applier, Report, RestoreError, feed};
use walhub_common::sql::{self, Announce};
use walhub_common::{DatabaseKey, Txid, TxidRange, clock};
use walhub_store::destinations::{DestinationError, Fault, FileKey};
use walhub_store::restore::{
    self, DestinationSource, DynSource, Listing, Piece, Plan, PlanError, PlannedFile, Reach, times,
};

/// Repairs and new attempts in one drill.
const MAX_ROUNDS: usize = 4;
/// Damaged objects that are told.
const MAX_TOLD: usize = 5;
/// Free disk space that a restore leaves.
const RESERVE_BYTES: u64 = 256 << 20;

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Of what.
    pub copy: Copy,
    /// Damaged objects are made anew.
    pub repair: bool,
    /// Read every file of the database that lies there, not only those that a restore takes.
    pub every_file: bool,
}

/// Why an attempt did not pass.
enum Trouble {
    /// Nothing was found out.
    Undone(String),
    /// It is not what it should be, and no object is to blame.
    Wrong(String),
    /// These objects are to blame.
    Damaged(Vec<Damage>),
}

/// Carries drills out.
pub(super) struct Runner {
    pub(super) buffer: Arc<dyn WalBuffer>,
    pub(super) board: Arc<Board>,
    pub(super) pins: Pins,
    pub(super) repairer: Repairer,
    pub(super) rules: Arc<Rules>,
    pub(super) scratch: PathBuf,
    pub(super) book: Book,
}

/// What a drill works with.
struct Site {
    place: Arc<Place>,
    database: Registered,
    /// What the destination was given, as far as its lane knows.
    held: Txid,
    source: DynSource,
}

impl Runner {
    /// One drill. That an object is being replaced is recorded before it is. Ends soon after `cancel`, but for a change under way at the
    /// destination.
    pub(super) async fn run(&self, asked: &Asked, cancel: &CancellationToken) -> Drill {
        let began = Instant::now();
        let mut drill = Drill::begin(asked.copy.clone(), clock::now_ms());
        let meter = Meter::new(self.rules.download_limit);
        if let Err(trouble) = self.rounds(asked, &mut drill, &meter, cancel).await {
            (drill.verdict, drill.message) = match trouble {
                Trouble::Undone(message) => (Verdict::Undone, message),
                Trouble::Wrong(message) => (Verdict::Failed, message),
                Trouble::Damaged(damaged) => (Verdict::Failed, told(&damaged)),
            };
        }
        (drill.bytes, drill.requests) = meter.totals();
        drill.elapsed_ms = began.elapsed().as_millis() as u64;
        drill
    }

    async fn rounds(
        &self,
        asked: &Asked,
        drill: &mut Drill,
        meter: &Arc<Meter>,
        cancel: &CancellationToken,
    ) -> Result<(), Trouble> {
        let site = self.site(&asked.copy, meter)?;
        let mut rounds = 0;
        let mut every_file = asked.every_file;
        let mut left = Vec::new();
        loop {
            let damaged = match self.attempt(&site, every_file, &left, drill, cancel).await {
                Ok(()) => {
                    let repaired = !drill.repairs.is_empty();
                    drill.verdict = if repaired { Verdict::Repaired } else { Verdict::Passed };
                    return Ok(());
                }
                Err(Trouble::Damaged(damaged)) => damaged,
                Err(trouble) => return Err(trouble),
            };
            rounds += 1;
            if !asked.repair || rounds > MAX_ROUNDS {
                return Err(Trouble::Damaged(damaged));
            }
            (drill.verdict, drill.message) = (Verdict::Repairing, told(&damaged));
            self.book.add(drill.clone()).await;
            let mut mended = false;
            for damage in &damaged {
                match self.repairer.mend(&site.place, &site.database, damage, &damaged, cancel).await {
                    Ok(Mended { done, stays }) => {
                        mended = true;
                        drill.repairs.push(done);
                        left.extend(stays.then(|| damage.object.clone()));
                    }
                    Err(error) => {
                        let FileKey { level, range, .. } = &damage.object;
                        drill
                            .repairs
                            .push(format!("level {level} file {range}.ltx was not repaired: {error}"));
                    }
                }
            }
            if !mended {
                return Err(Trouble::Damaged(damaged));
            }
            // Those that could not be mended are known; a restore shows whether it needs them.
            every_file = false;
        }
    }

    fn site(&self, copy: &Copy, meter: &Arc<Meter>) -> Result<Site, Trouble> {
        let undone = |text: &str| Trouble::Undone(text.to_owned());
        let database =
            self.buffer.find(&copy.database).ok_or_else(|| undone("the hub knows no such database"))?;
        let row = self.board.row(database.id, &database.key);
        let place = row.terms.places.iter().find(|place| *place.name() == copy.destination).cloned();
        let place = place.ok_or_else(|| undone("the database does not go to this destination"))?;
        let held = row.held(place.lane).ok_or_else(|| undone("nothing of it is known to lie there yet"))?;
        let plain = Arc::new(DestinationSource(place.destination.clone()));
        let source: DynSource = Arc::new(Measured::new(plain, meter.clone()));
        Ok(Site { place, database, held, source })
    }

    /// Restores, without the files that were `left`, and looks.
    async fn attempt(
        &self,
        site: &Site,
        every_file: bool,
        left: &[FileKey],
        drill: &mut Drill,
        cancel: &CancellationToken,
    ) -> Result<(), Trouble> {
        let key = &site.database.key;
        let _pin = tokio::select! {
            pin = self.pins.pin(key) => pin,
            () = cancel.cancelled() => return Err(Trouble::Undone("cancelled".to_owned())),
        };
        let mut listings = list(site, left, cancel).await?;
        if every_file {
            let planned = |file: &walhub_store::destinations::Listed| PlannedFile {
                source: site.source.name().clone(),
                level: file.level,
                range: file.range,
                size: file.size,
                time_ms: file.time_ms,
            };
            let all: Vec<PlannedFile> = listings[0].files.iter().map(planned).collect();
            let damaged = self.inspect_all(site, &all, cancel).await?;
            if !damaged.is_empty() {
                return Err(Trouble::Damaged(damaged));
            }
        }
        let plan = match plan(&listings, key, site.held) {
            Err(Trouble::Damaged(_)) => {
                // Levels are listed one by one while others write: what is missing twice is missing.
                listings = list(site, left, cancel).await?;
                plan(&listings, key, site.held)?
            }
            plan => plan?,
        };
        let bytes = self.size(site, &plan, cancel).await?;
        self.room(bytes).map_err(Trouble::Undone)?;
        let temp = Temp(self.scratch.join("drill.db"));
        let report = self.restore(site, &plan, &temp.0, cancel).await?;
        (drill.txid, drill.point_ms) = (plan.reached.get(), report.timestamp_ms);
        drill.database_bytes = report.bytes;
        let known = site.database.position.filter(|position| position.txid == plan.reached);
        if let Some(known) = known.filter(|known| known.checksum != report.checksum) {
            return Err(Trouble::Wrong(format!(
                "transaction {} gives database checksum {}, its source took {}",
                plan.reached.get(),
                report.checksum,
                known.checksum
            )));
        }
        let checks = Checks {
            integrity: self.rules.integrity,
            assertions: if self.rules.sql { self.rules.checks_of(key) } else { Vec::new() },
        };
        check(temp, checks, cancel).await
    }

    /// Bytes of the database, as the header of the newest file says.
    async fn size(&self, site: &Site, plan: &Plan, cancel: &CancellationToken) -> Result<u64, Trouble> {
        let Some(last) = plan.files.last() else { return Ok(0) };
        let sources = std::slice::from_ref(&site.source);
        let header = times::read_header(sources, &site.database.key, last, cancel).await;
        let header = header.map_err(|error| damaged(&site.database.key, last, error.into()))?;
        Ok(u64::from(header.commit) * u64::from(header.page_size.get()))
    }

    fn room(&self, bytes: u64) -> Result<(), String> {
        if bytes > self.rules.scratch_max {
            return Err(format!("the database has {bytes} bytes; scratch-max is {}", self.rules.scratch_max));
        }
        let stat = rustix::fs::statvfs(&self.scratch).map_err(|error| error.to_string())?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < bytes.saturating_add(RESERVE_BYTES) {
            return Err(format!("{bytes} bytes are needed in {}, {free} are free", self.scratch.display()));
        }
        Ok(())
    }

    /// The database of a plan, proven; else what is to blame.
    async fn restore(
        &self,
        site: &Site,
        plan: &Plan,
        out: &Path,
        cancel: &CancellationToken,
    ) -> Result<Report, Trouble> {
        let (broken, applied) = apply(site, plan, out, cancel).await;
        let message = match (broken, applied) {
            (None, Ok(report)) => return Ok(report),
            (Some(error), _) => match error.fault {
                Fault::NotFound | Fault::Corrupt(_) => error.to_string(),
                _ => return Err(Trouble::Undone(error.to_string())),
            },
            (None, Err(RestoreError::Io { action, path, source })) => {
                return Err(Trouble::Undone(format!("cannot {action} {}: {source}", path.display())));
            }
            (None, Err(error)) => error.to_string(),
        };
        let damaged = self.inspect_all(site, &plan.files, cancel).await?;
        if damaged.is_empty() {
            return Err(Trouble::Wrong(format!("every file is whole by itself, but {message}")));
        }
        Err(Trouble::Damaged(damaged))
    }

    /// One file after the other; those that are not whole.
    async fn inspect_all(
        &self,
        site: &Site,
        files: &[PlannedFile],
        cancel: &CancellationToken,
    ) -> Result<Vec<Damage>, Trouble> {
        let key = &site.database.key;
        let mut found = Vec::new();
        for file in files {
            if let Err(flaw) = inspect(&site.source, key, file, cancel).await {
                match damaged(key, file, flaw) {
                    Trouble::Damaged(damage) => found.extend(damage),
                    trouble => return Err(trouble),
                }
            }
        }
        Ok(found)
    }
}

/// What lies there, but for damaged files that were left under their lock.
async fn list(site: &Site, left: &[FileKey], cancel: &CancellationToken) -> Result<[Listing; 1], Trouble> {
    let files = site.source.list(&site.database.key, cancel).await;
    let mut files = files.map_err(|error| Trouble::Undone(error.to_string()))?;
    files.retain(|file| !left.iter().any(|key| (key.level, key.range) == (file.level, file.range)));
    Ok([Listing { source: site.source.name().clone(), files }])
}

/// What a restore of the newest state takes. Pure.
fn plan(listings: &[Listing], key: &DatabaseKey, held: Txid) -> Result<Plan, Trouble> {
    let hole = |first: u64, last: u64| {
        let range = TxidRange::from_raw(first, last).map(|range| vec![repair::hole(key, range)]);
        Trouble::Damaged(range.unwrap_or_default())
    };
    let reach = Reach::new(listings, None);
    let plan = match restore::plan::latest(&reach) {
        Ok(plan) => plan,
        Err(PlanError::Hole { after, next_available }) => {
            return Err(hole(after.map_or(1, |after| after.get() + 1), next_available.get() - 1));
        }
        Err(PlanError::NotFound) => return Err(hole(1, held.get())),
        Err(error) => return Err(Trouble::Wrong(error.to_string())),
    };
    if plan.reached < held {
        return Err(hole(plan.reached.get() + 1, held.get()));
    }
    Ok(plan)
}

fn damaged(key: &DatabaseKey, file: &PlannedFile, flaw: Flaw) -> Trouble {
    match flaw {
        Flaw::Unanswered(error) => Trouble::Undone(error.to_string()),
        flaw => Trouble::Damaged(vec![Damage {
            object: file.key(key),
            there: !matches!(flaw, Flaw::Missing),
            reason: flaw.to_string(),
        }]),
    }
}

fn told(damaged: &[Damage]) -> String {
    let mut told: Vec<String> = damaged.iter().take(MAX_TOLD).map(ToString::to_string).collect();
    if let Some(more) = damaged.len().checked_sub(MAX_TOLD).filter(|more| *more > 0) {
        told.push(format!("and {more} more"));
    }
    told.join("; ")
}

/// Reads the files of a plan into a database file: what the destination failed with, and what came of it.
async fn apply(
    site: &Site,
    plan: &Plan,
    out: &Path,
    cancel: &CancellationToken,
) -> (Option<DestinationError>, Result<Report, RestoreError>) {
    let path = out.to_owned();
    let (feeder, feed) = feed::channel();
    let reader = tokio::task::spawn_blocking(move || feed.restore(Applier::new(path, true)?));
    let mut pieces = restore::fetch(std::slice::from_ref(&site.source), &site.database.key, plan, cancel);
    let mut broken = None;
    let whole = loop {
        let fed = match pieces.next().await {
            Some(Ok(Piece::Start(file))) => {
                feeder.file(format!("level {} file {}.ltx", file.level, file.range)).await
            }
            Some(Ok(Piece::Data(data))) => feeder.data(data).await,
            Some(Err(error)) => {
                broken = Some(error);
                break false;
            }
            None => break true,
        };
        if fed.is_err() {
            break false;
        }
    };
    if whole {
        let _ = feeder.finish(None).await;
    } else {
        drop(feeder);
    }
    let applied = reader.await.unwrap_or_else(|error| {
        let (action, path) = ("write", out.to_owned());
        Err(RestoreError::Io { action, path, source: io::Error::other(error) })
    });
    (broken, applied)
}

/// What SQLite says of it. The file goes when SQLite has closed it.
async fn check(temp: Temp, checks: Checks, cancel: &CancellationToken) -> Result<(), Trouble> {
    let look = move |announce: Announce| checks::run(&temp.0, &checks, announce);
    match sql::until(look, cancel.cancelled()).await {
        Ok(Ok(said)) => said.map_err(Trouble::Wrong),
        Ok(Err(())) => Err(Trouble::Undone("cancelled".to_owned())),
        Err(error) => Err(Trouble::Undone(format!("a task of the hub ended: {error}"))),
    }
}

/// A file that goes with its value.
struct Temp(PathBuf);

impl Drop for Temp {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a restored database");
        }
    }
}
