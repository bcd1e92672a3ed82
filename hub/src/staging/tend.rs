//! Looks after what is kept: parts that nobody continues, sealed snapshots that every lane has taken.

use super::{MAX_AGE, Staging};
use crate::buffer::{Takers, WalBuffer};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks at sealed snapshots.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Between two looks for parts that nobody continues.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(3600);

/// Works until `stop`.
pub async fn tend(
    staging: Arc<Staging>,
    buffer: Arc<dyn WalBuffer>,
    takers: Arc<dyn Takers>,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    let mut expired: Option<Instant> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let expire = expired.is_none_or(|at| at.elapsed() >= EXPIRE_INTERVAL);
        if expire {
            expired = Some(Instant::now());
        }
        let (staging, buffer, takers) = (staging.clone(), buffer.clone(), takers.clone());
        let round = tokio::task::spawn_blocking(move || round(&staging, &*buffer, &*takers, expire));
        match round.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "parts of first snapshots could not be removed"),
            Err(error) => tracing::error!(%error, "a bug ended the removal of old parts"),
        }
    }
}

fn round(staging: &Staging, buffer: &dyn WalBuffer, takers: &dyn Takers, expire: bool) -> io::Result<()> {
    staging.sweep(buffer, takers)?;
    if expire {
        for database in staging.expire(MAX_AGE)? {
            tracing::warn!(%database, "dropped the parts of a first snapshot that nobody continued for a week");
        }
    }
    Ok(())
}
