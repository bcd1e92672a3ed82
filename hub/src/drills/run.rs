//! One drill: list ▸ plan ▸ restore ▸ compare ▸ check ▸ older points; and what is damaged, object by object.

use super::checks::{self, Checks};
use super::image::{self, Failed, Scratch};
use super::ledger::Book;
use super::meter::{Meter, Metered};
use super::model::{Copy, Drill, Locked, OlderPoint, Verdict};
use super::points;
use super::rules::Rules;
use crate::buffer::{Registered, WalBuffer};
use crate::copies::{Board, Place};
use crate::durable::Temp;
use crate::repair::inspect::{Flaw, inspect};
use crate::repair::{self, Damage, Known, Mended, Repairer};
use crate::retain::{Holds, Pins};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::restore::Report;
use walhub_common::sql::{self, Announce};
use walhub_common::{DatabaseKey, Txid, TxidRange, clock};
use walhub_store::destinations::FileKey;
use walhub_store::restore::{
    self, Around, DestinationSource, DynSource, Listing, Plan, PlanError, PlannedFile, Reach,
};

/// Repairs and new attempts in one drill.
const MAX_ROUNDS: usize = 4;
/// Damaged objects that are told.
const MAX_TOLD: usize = 5;

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Of what.
    pub copy: Copy,
    /// Damaged objects are made anew.
    pub repair: bool,
    /// Read every file of the database that lies there, not only those that a restore takes; also those that are known to be
    /// damaged and locked, which are left out otherwise.
    pub every_file: bool,
}

/// Why an attempt did not pass.
enum Trouble {
    /// Nothing was found out.
    Undone(String),
    /// Neither, for want of room.
    TooLarge(String),
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
    pub(super) holds: Arc<Holds>,
    pub(super) data_dir: PathBuf,
    pub(super) book: Book,
    /// Cancelled when the hub goes down.
    pub(super) stop: CancellationToken,
}

/// What a drill works with.
struct Site {
    rules: Arc<Rules>,
    scratch: PathBuf,
    place: Arc<Place>,
    database: Registered,
    /// What the destination was given, as far as its lane knows.
    held: Txid,
    source: DynSource,
}

impl Runner {
    /// One drill. That an object is being replaced is recorded before it is. Ends soon after `cancel`, but for a change under way at the
    /// destination.
    pub(super) async fn run(&self, asked: &Asked, rules: Arc<Rules>, cancel: &CancellationToken) -> Drill {
        let began = Instant::now();
        let mut drill = Drill::begin(asked.copy.clone(), clock::now_ms());
        drill.locked = self.book.open().last(&asked.copy).map_or_else(Vec::new, |last| last.locked.clone());
        let meter = Meter::new(rules.download_limit);
        if let Err(trouble) = self.rounds(asked, rules, &mut drill, &meter, cancel).await {
            (drill.verdict, drill.message) = match trouble {
                Trouble::Undone(message) | Trouble::TooLarge(message) => (Verdict::Undone, message),
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
        rules: Arc<Rules>,
        drill: &mut Drill,
        meter: &Arc<Meter>,
        cancel: &CancellationToken,
    ) -> Result<(), Trouble> {
        let site = self.site(&asked.copy, rules, meter)?;
        let Runner { buffer, board, holds, pins, stop, .. } = self;
        let (buffer, board, holds, pins) = (buffer.clone(), board.clone(), holds.clone(), pins.clone());
        let repairer = Repairer::new(buffer, board, holds, pins, &site.scratch, stop.clone());
        let mut rounds = 0;
        let mut every_file = asked.every_file;
        let key = &site.database.key;
        let mut left: Vec<FileKey> = match asked.every_file {
            true => Vec::new(),
            false => drill.locked.iter().filter_map(|locked| locked.object(key)).collect(),
        };
        loop {
            let damaged = match self.attempt(&site, every_file, &left, drill, cancel).await {
                Ok(()) => {
                    let repaired = !drill.repairs.is_empty();
                    drill.verdict = if repaired { Verdict::Repaired } else { Verdict::Passed };
                    if !repaired && !drill.locked.is_empty() {
                        drill.message = without(&drill.locked);
                    }
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
                let known = Known { damaged: &damaged, locked: &left };
                match repairer.mend(&site.place, &site.database, damage, known, cancel).await {
                    Ok(Mended { done, stays }) => {
                        mended = true;
                        drill.repairs.push(done);
                        let object = Some(&damage.object);
                        drill.locked.retain(|locked| locked.object(key).as_ref() != object);
                        if let Some(lock) = stays {
                            drill.locked.push(Locked::new(&damage.object, lock));
                            left.push(damage.object.clone());
                        }
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

    fn site(&self, copy: &Copy, rules: Arc<Rules>, meter: &Arc<Meter>) -> Result<Site, Trouble> {
        let undone = |text: &str| Trouble::Undone(text.to_owned());
        let database =
            self.buffer.find(&copy.database).ok_or_else(|| undone("the hub knows no such database"))?;
        let row = self.board.row(database.id, &database.key);
        let place = row.terms.places.iter().find(|place| *place.name() == copy.destination).cloned();
        let place = place.ok_or_else(|| undone("the database does not go to this destination"))?;
        let held = row.held(place.lane).ok_or_else(|| undone("nothing of it is known to lie there yet"))?;
        let plain = Arc::new(DestinationSource(place.destination.clone()));
        let source: DynSource = Arc::new(Around::new(plain, Metered(meter.clone())));
        let scratch = rules.scratch_folder(&self.data_dir);
        Ok(Site { rules, scratch, place, database, held, source })
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
        let mut listings = list(site, left, drill, cancel).await?;
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
            let objects: Vec<&FileKey> = damaged.iter().map(|damage| &damage.object).chain(left).collect();
            drill.locked.retain(|locked| locked.object(key).is_some_and(|object| objects.contains(&&object)));
            if !damaged.is_empty() {
                return Err(Trouble::Damaged(damaged));
            }
        }
        let plan = match plan(&listings, key, site.held) {
            Err(Trouble::Damaged(_)) => {
                // Levels are listed one by one while others write: what is missing twice is missing.
                listings = list(site, left, drill, cancel).await?;
                plan(&listings, key, site.held)?
            }
            plan => plan?,
        };
        let (report, temp) = self.restore(site, &plan, cancel).await?;
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
            integrity: site.rules.integrity,
            assertions: if site.rules.sql { site.rules.checks_of(key) } else { Vec::new() },
        };
        check(temp, checks, cancel).await?;
        self.older(site, &listings, plan.reached, drill, cancel).await
    }

    /// The database of a plan, proven; else what is to blame.
    async fn restore(
        &self,
        site: &Site,
        plan: &Plan,
        cancel: &CancellationToken,
    ) -> Result<(Report, Temp), Trouble> {
        let scratch = Scratch { folder: &site.scratch, max_bytes: site.rules.scratch_max };
        let key = &site.database.key;
        let message = match image::restore(&site.source, key, plan, scratch, cancel).await {
            Ok(restored) => return Ok(restored),
            Err(Failed::Undone(message)) => return Err(Trouble::Undone(message)),
            Err(Failed::TooLarge(message)) => return Err(Trouble::TooLarge(message)),
            Err(Failed::Wrong(message)) => message,
        };
        let damaged = self.inspect_all(site, &plan.files, cancel).await?;
        if damaged.is_empty() {
            return Err(Trouble::Wrong(format!("every file is whole by itself, but {message}")));
        }
        Err(Trouble::Damaged(damaged))
    }

    /// Tries points before `newest`, by their checksums alone: what is asked in SQL is meant of the present.
    async fn older(
        &self,
        site: &Site,
        listings: &[Listing],
        newest: Txid,
        drill: &mut Drill,
        cancel: &CancellationToken,
    ) -> Result<(), Trouble> {
        drill.older.clear();
        for plan in points::older(listings, newest, site.rules.older_points, drill.seed()) {
            let at = format!("at transaction {}", plan.reached.get());
            let (report, _temp) = match self.restore(site, &plan, cancel).await {
                Ok(restored) => restored,
                // It was larger then.
                Err(Trouble::TooLarge(reason)) => {
                    tracing::debug!(copy = %drill.copy, txid = plan.reached.get(), reason, "an older point was not tried");
                    continue;
                }
                Err(Trouble::Undone(message)) => return Err(Trouble::Undone(format!("{at}: {message}"))),
                Err(Trouble::Wrong(message)) => return Err(Trouble::Wrong(format!("{at}: {message}"))),
                Err(damaged) => return Err(damaged),
            };
            drill.older.push(OlderPoint { txid: plan.reached.get(), point_ms: report.timestamp_ms });
        }
        Ok(())
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

/// What lies there, but for damaged files that were left under their lock. Those that are gone are forgotten.
async fn list(
    site: &Site,
    left: &[FileKey],
    drill: &mut Drill,
    cancel: &CancellationToken,
) -> Result<[Listing; 1], Trouble> {
    let key = &site.database.key;
    let files = site.source.list(key, cancel).await;
    let mut files = files.map_err(|error| Trouble::Undone(error.to_string()))?;
    drill.locked.retain(|locked| {
        let object = locked.object(key);
        let is_it =
            |object: &FileKey| files.iter().any(|f| (f.level, f.range) == (object.level, object.range));
        object.as_ref().is_some_and(is_it)
    });
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

/// `without level 0 file 00…-00….ltx, which is damaged and locked (…)`.
fn without(locked: &[Locked]) -> String {
    let mut told: Vec<String> = locked.iter().take(MAX_TOLD).map(ToString::to_string).collect();
    if let Some(more) = locked.len().checked_sub(MAX_TOLD).filter(|more| *more > 0) {
        told.push(format!("and {more} more"));
    }
    format!("without {}", told.join("; "))
}

fn told(damaged: &[Damage]) -> String {
    let mut told: Vec<String> = damaged.iter().take(MAX_TOLD).map(ToString::to_string).collect();
    if let Some(more) = damaged.len().checked_sub(MAX_TOLD).filter(|more| *more > 0) {
        told.push(format!("and {more} more"));
    }
    told.join("; ")
}

/// What SQLite says of it. The file goes when SQLite has closed it.
async fn check(temp: Temp, checks: Checks, cancel: &CancellationToken) -> Result<(), Trouble> {
    let look = move |announce: Announce| checks::run(temp.path(), &checks, announce);
    match sql::until(look, cancel.cancelled()).await {
        Ok((_, Some(()))) => Err(Trouble::Undone("cancelled".to_owned())),
        Ok((said, None)) => said.map_err(Trouble::Wrong),
        Err(error) => Err(Trouble::Undone(format!("a task of the hub ended: {error}"))),
    }
}
