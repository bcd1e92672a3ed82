//! A good copy of what is damaged, on the hub's disk.

use super::inspect::{Flaw, inspect};
use super::{Damage, Known, RepairError};
use crate::buffer::Registered;
use crate::compact::streamed;
use crate::copies::Place;
use crate::durable::Temp;
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::Stamp;
use walhub_common::{Checksum, Level, Txid, TxidRange};
use walhub_store::compact::{CompactError, Input, Made, compact};
use walhub_store::destinations::{FileKey, Listed};
use walhub_store::restore::{DynSource, Inventory, Listing, Plan, PlannedFile, Reach, SourceName, times};

/// Other copies that turn out to be damaged as well.
const MAX_BAD: usize = 64;
/// Snapshots that are thought of.
const MAX_POINTS: usize = 64;
/// Free disk space that a copy in the making leaves.
const RESERVE_BYTES: u64 = 256 << 20;

/// What a copy is made for.
pub(super) struct Wanted<'a> {
    pub(super) database: &'a Registered,
    pub(super) place: &'a Arc<Place>,
    pub(super) damage: &'a Damage,
    /// All that is known to be wrong at the place.
    pub(super) known: Known<'a>,
    /// Newest transaction that must be restorable there afterwards.
    pub(super) reach: Txid,
    /// The same transactions will do; else a snapshot must stand in.
    pub(super) exact: bool,
}

/// See the module doc.
pub(super) struct Good {
    pub(super) key: FileKey,
    pub(super) temp: Temp,
    pub(super) time_ms: i64,
    pub(super) post: Option<Checksum>,
    /// Names of the sources, for people.
    pub(super) from: String,
}

type Bad = HashSet<(SourceName, Level, TxidRange)>;

/// What is to be made, and of what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Recipe {
    pub(super) level: Level,
    pub(super) range: TxidRange,
    pub(super) plan: Plan,
}

/// The cheapest files that give exactly `range`; of equals those of the first listing.
fn exactly(listings: &[Listing], range: TxidRange) -> Option<Plan> {
    let inside = |file: &Listed| file.range.max() <= range.max() && file.range.min() >= range.min();
    let listings: Vec<Listing> = listings
        .iter()
        .map(|listing| Listing {
            source: listing.source.clone(),
            files: listing.files.iter().filter(|file| inside(file)).cloned().collect(),
        })
        .collect();
    Reach::new(&listings, Txid::new(range.min().get() - 1)).chain_to(range.max())
}

/// A snapshot of the first state behind the damage from which what lies at `place` leads to `reach`. What is bad there keeps its
/// name for itself.
fn stand_in(listings: &[Listing], bad: &Bad, place: &SourceName, behind: Txid, reach: Txid) -> Option<Plan> {
    let from = Reach::new(listings, None);
    let at_place: Vec<Listed> =
        listings.iter().filter(|listing| listing.source == *place).flat_map(|l| l.files.clone()).collect();
    let is_free = |point: &Txid| {
        let range = TxidRange::new(Txid::FIRST, *point).expect("BUG: counted from the first");
        !bad.contains(&(place.clone(), Level::SNAPSHOT, range))
    };
    let points = from.points().filter(|point| (behind..=reach).contains(point) && is_free(point));
    // The newest one will do if none before it does.
    let newest = from.chain_to(reach).map(|plan| plan.reached).filter(is_free);
    let mut points = points.take(MAX_POINTS).chain(newest);
    let snapshot = points.find(|point| {
        let mut files = at_place.clone();
        let range = TxidRange::new(Txid::FIRST, *point).expect("BUG: counted from the first");
        files.push(Listed { level: Level::SNAPSHOT, range, size: 0, time_ms: 0 });
        Reach::new(&[Listing { source: place.clone(), files }], None).newest() >= Some(reach)
    })?;
    from.chain_to(snapshot)
}

/// What is to be made, given what everybody holds but for what is bad.
pub(super) fn choose(
    listings: &[Listing],
    bad: &Bad,
    place: &SourceName,
    object: &FileKey,
    reach: Txid,
    exact: bool,
) -> Option<Recipe> {
    let fine = |source: &SourceName, file: &Listed| !bad.contains(&(source.clone(), file.level, file.range));
    let listings: Vec<Listing> = listings
        .iter()
        .map(|listing| Listing {
            source: listing.source.clone(),
            files: listing.files.iter().filter(|file| fine(&listing.source, file)).cloned().collect(),
        })
        .collect();
    if let Some(plan) = exactly(&listings, object.range).filter(|_| exact) {
        return Some(Recipe { level: object.level, range: object.range, plan });
    }
    let plan = stand_in(&listings, bad, place, object.range.max(), reach)?;
    let range = TxidRange::new(Txid::FIRST, plan.reached)?;
    Some(Recipe { level: Level::SNAPSHOT, range, plan })
}

/// Makes a good copy out of what `sources` hold, most preferred first. What turns out to be damaged there is left out.
pub(super) async fn make(
    sources: &[DynSource],
    wanted: &Wanted<'_>,
    folder: &Path,
    cancel: &CancellationToken,
) -> Result<Good, RepairError> {
    let (key, object) = (&wanted.database.key, &wanted.damage.object);
    let place = wanted.place.destination.name();
    let Inventory { listings, unanswered } = Inventory::list(sources, key, cancel).await;
    let Known { damaged, locked } = wanted.known;
    let objects = damaged.iter().map(|damage| &damage.object).chain(locked);
    let mut bad: Bad = objects.map(|object| (place.clone(), object.level, object.range)).collect();
    let mut found: Vec<String> = unanswered.iter().map(ToString::to_string).collect();
    for _ in 0..MAX_BAD {
        let Some(recipe) = choose(&listings, &bad, place, object, wanted.reach, wanted.exact) else { break };
        let reason = match cook(sources, wanted.database, &recipe, folder, cancel).await {
            Ok(good) => return Ok(good),
            Err(Fault::Disk(error)) => return Err(RepairError::Disk(error)),
            Err(Fault::Inputs(_)) if cancel.is_cancelled() => return Err(RepairError::Cancelled),
            Err(Fault::Inputs(reason)) => reason,
        };
        // Which of them is it?
        let before = bad.len();
        for file in &recipe.plan.files {
            let Some(source) = sources.iter().find(|source| source.name() == &file.source) else { continue };
            if let Err(flaw) = inspect(source, key, file, cancel).await {
                found
                    .push(format!("level {} file {}.ltx of {}: {flaw}", file.level, file.range, file.source));
                bad.insert((file.source.clone(), file.level, file.range));
                if let Flaw::Unanswered(_) = flaw {
                    bad.extend(all_of(&listings, &file.source));
                }
            }
        }
        if bad.len() == before {
            found.push(reason);
            // Each is whole by itself: one of them is not of this history.
            bad.extend(recipe.plan.files.iter().map(|file| (file.source.clone(), file.level, file.range)));
        }
    }
    let reason = match found.is_empty() {
        true => "nobody holds them".to_owned(),
        false => found.join("; "),
    };
    Err(RepairError::NoCopy { first: object.range.min().get(), last: object.range.max().get(), reason })
}

fn all_of<'a>(
    listings: &'a [Listing],
    source: &'a SourceName,
) -> impl Iterator<Item = (SourceName, Level, TxidRange)> + 'a {
    let of = listings.iter().filter(move |listing| listing.source == *source);
    of.flat_map(|listing| listing.files.iter().map(|file| (listing.source.clone(), file.level, file.range)))
}

enum Fault {
    /// The hub's disk.
    Disk(io::Error),
    /// What it was to be made of.
    Inputs(String),
}

/// The file of a recipe. Every input is read to its end and its checksum compared; a whole database is held against the checksum
/// taken at the source.
async fn cook(
    sources: &[DynSource],
    database: &Registered,
    recipe: &Recipe,
    folder: &Path,
    cancel: &CancellationToken,
) -> Result<Good, Fault> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let (level, range, plan) = (recipe.level, recipe.range, &recipe.plan);
    room(folder, plan.total_bytes()).map_err(Fault::Disk)?;
    let last = plan.files.last().ok_or_else(|| Fault::Inputs("there is nothing to make it of".to_owned()))?;
    let time_ms = times::read_time(sources, &database.key, last, cancel).await;
    let timestamp_ms = time_ms.map_err(|error| Fault::Inputs(error.to_string()))?;
    let whole = range.min() == Txid::FIRST;
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let temp = Temp::new(folder.join(format!("repair-{number}.ltx")));
    let mut stamp = Stamp { timestamp_ms, node_id: database.lineage, whole };
    let mut made = merge(sources, database, &plan.files, stamp, &temp, cancel).await;
    if matches!(made, Err(CompactError::Unproved)) && plan.files.len() == 1 {
        // Litestream's own: its file checksum is all there is.
        stamp.whole = false;
        made = merge(sources, database, &plan.files, stamp, &temp, cancel).await;
    }
    let made = made.map_err(|error| match error {
        CompactError::Write { source, .. } => Fault::Disk(source),
        error => Fault::Inputs(error.to_string()),
    })?;
    if made.header.range != range {
        return Err(Fault::Inputs(format!("it came out as {}", made.header.range)));
    }
    let post = made.header.provenance.map(|known| known.post);
    let newest = database.position.filter(|position| position.txid == range.max());
    if let (Some(post), Some(newest)) = (post, newest)
        && post != newest.checksum
    {
        return Err(Fault::Inputs(format!("its checksum is {post}, the hub knows {}", newest.checksum)));
    }
    let from: BTreeSet<&str> = plan.files.iter().map(|file| file.source.as_str()).collect();
    let from = from.into_iter().collect::<Vec<_>>().join(" and ");
    let key = FileKey { database: database.key.clone(), level, range };
    Ok(Good { key, temp, time_ms: timestamp_ms, post, from })
}

async fn merge(
    sources: &[DynSource],
    database: &Registered,
    files: &[PlannedFile],
    stamp: Stamp,
    temp: &Temp,
    cancel: &CancellationToken,
) -> Result<Made, CompactError> {
    let input = |file: &PlannedFile| streamed(sources.to_vec(), &database.key, file.clone(), cancel);
    let inputs: Vec<Input> = files.iter().map(input).collect();
    let (out, stop) = (temp.path().to_owned(), cancel.clone());
    let made = tokio::task::spawn_blocking(move || compact(inputs, stamp, &out, &stop)).await;
    made.unwrap_or(Err(CompactError::Cancelled))
}

fn room(folder: &Path, needed: u64) -> io::Result<()> {
    let stat = rustix::fs::statvfs(folder)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < needed.saturating_add(RESERVE_BYTES) {
        return Err(io::Error::other(format!(
            "{needed} bytes are needed in {}, {free} are free",
            folder.display()
        )));
    }
    Ok(())
}
