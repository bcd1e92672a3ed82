//! Which restore point was the newest at a time.
//!
//! The header of a file holds the time of its newest transaction. A listing does not always: a bucket shows when the
//! object was uploaded, which after an outage is hours later. Since times never fall from one transaction to the next, a
//! binary search over the restore points needs the headers of about log2(n) files.

use super::plan::{self, Plan, PlanError, PlannedFile};
use super::reach::Reach;
use super::source::DynSource;
use crate::destinations::error::{Context, Operation};
use crate::destinations::{DestinationError, Fault};
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::{HEADER_BYTES, Header};
use walhub_common::{DatabaseKey, Txid};

/// The cheapest chain to the newest restore point at or before `asked_ms`. `time_of` answers for one file; when it fails
/// the next source that holds a file with the same end is asked.
pub async fn not_after<F>(
    reach: &Reach<'_>,
    asked_ms: i64,
    time_of: impl Fn(PlannedFile) -> F,
) -> Result<Result<Plan, PlanError>, DestinationError>
where
    F: Future<Output = Result<i64, DestinationError>>,
{
    let points: Vec<Txid> = reach.points().collect();
    if points.is_empty() {
        return Ok(plan::latest(reach));
    }
    // All points before `low` are old enough, all from `high` on are too young.
    let (mut low, mut high) = (0, points.len());
    let mut oldest_ms = None;
    while low < high {
        let middle = low + (high - low) / 2;
        let time_ms = time_at(reach, points[middle], &time_of).await?;
        if time_ms <= asked_ms {
            low = middle + 1;
        } else {
            high = middle;
            oldest_ms = Some(time_ms);
        }
    }
    let Some(last) = low.checked_sub(1) else {
        let oldest_ms = oldest_ms.expect("BUG: the oldest point was looked at and found too young");
        return Ok(Err(PlanError::BeforeOldest { asked_ms, oldest: points[0], oldest_ms }));
    };
    // Transactions in a hole right behind the point may be as old as was asked for; nobody can tell.
    if let (true, Some(hole)) = (last + 1 == points.len(), reach.hole()) {
        return Ok(Err(hole.into()));
    }
    Ok(Ok(reach.chain_to(points[last]).expect("BUG: a restore point is reachable")))
}

async fn time_at<F>(
    reach: &Reach<'_>,
    point: Txid,
    time_of: &impl Fn(PlannedFile) -> F,
) -> Result<i64, DestinationError>
where
    F: Future<Output = Result<i64, DestinationError>>,
{
    let mut failed = None;
    for file in reach.files_ending_at(point) {
        match time_of(file).await {
            Ok(time_ms) => return Ok(time_ms),
            Err(error) if matches!(error.fault, Fault::Cancelled) => return Err(error),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.expect("BUG: a restore point is the end of a file"))
}

/// The time of a file's newest transaction, from its header unless its source lists exact times.
pub async fn read_time(
    sources: &[DynSource],
    database: &DatabaseKey,
    file: &PlannedFile,
    cancel: &CancellationToken,
) -> Result<i64, DestinationError> {
    match sources.iter().find(|source| source.name() == &file.source) {
        Some(source) if source.lists_exact_times() => Ok(file.time_ms),
        _ => Ok(read_header(sources, database, file, cancel).await?.timestamp_ms),
    }
}

/// The header of a planned file, checked against its name.
pub async fn read_header(
    sources: &[DynSource],
    database: &DatabaseKey,
    file: &PlannedFile,
    cancel: &CancellationToken,
) -> Result<Header, DestinationError> {
    let key = file.key(database);
    let context = Context::new(&file.source, Operation::Open, &key);
    let source = sources.iter().find(|source| source.name() == &file.source);
    let source =
        source.ok_or_else(|| context.error(Fault::Misconfigured("there is no such source".into())))?;
    let start = source.read_at(&key, 0..HEADER_BYTES as u64, cancel).await?;
    check_header(&start, file).map_err(|text| context.error(Fault::Corrupt(text)))
}

/// Decodes a header and compares it with the name of its file.
pub(super) fn check_header(start: &[u8], file: &PlannedFile) -> Result<Header, String> {
    let header = Header::decode(start).map_err(|error| error.to_string())?;
    if header.range != file.range {
        return Err(format!("its header says {}", header.range));
    }
    Ok(header)
}
