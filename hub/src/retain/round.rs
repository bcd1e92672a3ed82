//! One database at one destination: list ▸ plan ▸ delete.

use super::Shared;
use crate::buffer::Registered;
use crate::copies::{Needs, Place};
use crate::retain::Claim;
use std::collections::BTreeSet;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::{HEADER_BYTES, Header};
use walhub_common::{DatabaseKey, DestinationName, Txid};
use walhub_store::destinations::{FileKey, Listed};
use walhub_store::restore::{DestinationSource, Source};
use walhub_store::retention::{self, Plan, Policy, Shield};

/// Files deleted between two looks at holds and readers.
const BATCH: usize = 1000;

/// What was found, and done.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which database.
    pub database: DatabaseKey,
    /// Where.
    pub destination: DestinationName,
    /// Points that somebody waits to restore.
    pub needs: Needs,
    /// The verdicts; none when the destination did not answer.
    pub plan: Plan,
    /// Newest transaction that any file names.
    pub reach: Option<Txid>,
    /// Files that are gone now.
    pub deleted: usize,
    /// What went wrong. Files that were to be deleted may be there still; they are tried again with the next round.
    pub error: Option<String>,
}

/// What is asked of one look.
pub(super) struct Asked<'a> {
    pub(super) policy: &'a Policy,
    /// The time it is.
    pub(super) now_ms: i64,
    /// Delete.
    pub(super) apply: bool,
}

pub(super) async fn look(
    shared: &Shared,
    place: &Place,
    database: &Registered,
    asked: &Asked<'_>,
    cancel: &CancellationToken,
) -> Report {
    let mut report = Report {
        database: database.key.clone(),
        destination: place.destination.name().clone(),
        needs: Needs::default(),
        plan: Plan::default(),
        reach: None,
        deleted: 0,
        error: None,
    };
    if let Err(error) = judge(shared, place, database, asked, cancel, &mut report).await {
        report.error = Some(error);
    }
    report
}

async fn judge(
    shared: &Shared,
    place: &Place,
    database: &Registered,
    asked: &Asked<'_>,
    cancel: &CancellationToken,
    report: &mut Report,
) -> Result<(), String> {
    let key = &database.key;
    let points = shared.board.points();
    let changes = points.changes(place.lane, database.id);
    let files =
        DestinationSource(place.destination.clone()).list(key, cancel).await.map_err(|e| e.to_string())?;
    report.reach = files.iter().map(|file| file.range.max()).max();
    let needs = shared.board.awaited().of(key);
    let shield = match () {
        () if shared.holds.is_held(key) => Some(Shield::Hold),
        () if shared.pins.in_use(key) => Some(Shield::InUse),
        () if needs.everything => Some(Shield::Needs),
        () => None,
    };
    let awaited: BTreeSet<Txid> = needs.points.keys().copied().collect();
    report.plan = retention::plan(&files, asked.now_ms, asked.policy, shield, &awaited);
    report.needs = needs;
    if report.plan.delete.is_empty() {
        return Ok(());
    }
    ours(place, database, &files, cancel).await?;
    if !asked.apply {
        return Ok(());
    }
    let key_of = |file: &&Listed| FileKey { database: key.clone(), level: file.level, range: file.range };
    let keys: Vec<FileKey> = report.plan.in_order().iter().map(key_of).collect();
    // Somebody began to read it: the next round is as good.
    let Some(claim) = shared.pins.claim(key) else { return Ok(()) };
    // A compacted file that was put meanwhile may need what the plan takes: the next round knows of it.
    let Some(turn) = points.begin_deleting(place.lane, database.id, changes) else { return Ok(()) };
    let done = delete(shared, place, &claim, &keys, cancel, report).await;
    match &done {
        Ok(()) => {
            let left: Vec<Listed> = report.plan.keep.iter().map(|(file, _)| file.clone()).collect();
            turn.learn(&left);
        }
        Err(_) => points.forget(place.lane, database.id),
    }
    done
}

async fn delete(
    shared: &Shared,
    place: &Place,
    claim: &Claim,
    files: &[FileKey],
    cancel: &CancellationToken,
    report: &mut Report,
) -> Result<(), String> {
    let Report { database: key, needs, deleted, .. } = report;
    // Who begins to wait reads the database meanwhile: before the claim, so it is seen here, or not until it is dropped.
    if shared.board.awaited().of(key) != *needs {
        return Err("somebody began or ended to wait for a point of it".to_owned());
    }
    for batch in files.chunks(BATCH) {
        if shared.holds.is_held(key) {
            return Err("it was put on hold".to_owned());
        }
        if claim.stop().is_cancelled() {
            return Err("somebody began to read it".to_owned());
        }
        let stop = cancel.child_token();
        let deleting = place.destination.delete(batch, &stop);
        tokio::pin!(deleting);
        let outcome = tokio::select! {
            outcome = &mut deleting => outcome,
            () = claim.stop().cancelled() => {
                stop.cancel();
                deleting.await
            }
        };
        outcome.map_err(|error| error.to_string())?;
        *deleted += batch.len();
    }
    Ok(())
}

/// Refuses files that are not of our history. Their lane says so as well; this keeps us from deleting them.
async fn ours(
    place: &Place,
    database: &Registered,
    files: &[Listed],
    cancel: &CancellationToken,
) -> Result<(), String> {
    let Some(last) = files.iter().max_by_key(|file| file.range.max()) else { return Ok(()) };
    let held = database.position.map(|position| position.txid);
    if Some(last.range.max()) > held {
        let held = held.map_or(0, Txid::get);
        return Err(format!(
            "its files reach to {}, the hub's to {held}: nothing is deleted",
            last.range.max().get()
        ));
    }
    let key = FileKey { database: database.key.clone(), level: last.level, range: last.range };
    let start = place.destination.read_start(&key, HEADER_BYTES, cancel).await.map_err(|e| e.to_string())?;
    let header = Header::decode(&start).map_err(|error| format!("{key}: {error}"))?;
    if header.node_id != 0 && header.node_id != database.lineage {
        return Err(format!(
            "its files are of lineage {:016x}, the hub's {:016x}: nothing is deleted",
            header.node_id, database.lineage
        ));
    }
    Ok(())
}
