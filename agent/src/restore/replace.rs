//! A database whose application is stopped: a fresh file takes the place of whatever is there, also of nothing, of a damaged one,
//! and of one with another page size.
//!
//! ```text
//! nobody else has it open ▸ what is there is at the hub (if it can be followed at all) ▸ fetch, prove, check a file beside it
//!     ▸ its task lets go ▸ swap ▸ its task takes hold again: what differs is the next transaction of the same history
//! ```
//! Until the swap nothing is changed, and following goes on. The swap itself is [`super::swap`].

use super::fetch::{Fetcher, bug};
use super::live::{PASSING, SHIP_PATIENCE, SYNC_PATIENCE, refused, unless};
use super::swap::{self, Swap, Swapped};
use super::{Failure, Ground, Order, Outcome, Phase, Point, Tell, resolve};
use crate::capture::{in_the_way, real};
use crate::database::{Ask, Contact, Done, Level, State};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::sql::{Check, NoCheck};
use walhub_common::{Pos, Txid};
use walhub_proto::v1::DatabaseRef;

/// The task of the database has let go of it within this time: a first snapshot may be under way.
const LET_GO: Duration = Duration::from_secs(60);
/// A file is followed within this time, also the new one, and looked for this often.
const FOLLOWED: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(200);

/// See [`super::execute`].
pub(super) async fn bring_back(
    ground: &Ground,
    order: &Order,
    tell: Tell<'_>,
    cancel: &CancellationToken,
) -> Result<Outcome, Failure> {
    // A file of a folder that is gone is nobody's task.
    let contact = ground.public.find(order.database.as_str()).ok();
    let _one = match contact.as_ref().map(|contact| contact.desk.restoring.try_lock()) {
        Some(Err(_)) => {
            let text = format!("another restore of {} is running; wait for it", order.database);
            return Err(Failure::Failed(text));
        }
        one => one,
    };
    let checks: Result<Vec<Check>, NoCheck> = order.checks.iter().map(|check| check.parse()).collect();
    let checks = checks.map_err(|why| Failure::Failed(format!("{why}; nothing was changed")))?;
    (tell)(Phase::Fetching, 0, 0);
    let path = closed(order.path.clone()).await?;
    let safety = match &contact {
        Some(contact) => unless(cancel, safety(ground, contact)).await?,
        None => None,
    };
    let staged = Staged(swap::beside(&path, swap::NEW));
    let link = ground.shared.board.link();
    let link = link.ok_or_else(|| Failure::Failed("the hub cannot be reached".into()))?;
    let database = DatabaseRef { agent: ground.shared.agent.to_string(), name: order.database.to_string() };
    let mut fetcher = Fetcher::new(link.channel.clone(), database, order.until, order.max_bytes_per_second);
    let progress = |bytes, total| (tell)(Phase::Fetching, bytes, total);
    fetcher.whole_file(&staged.0, &checks, &progress, cancel).await?;
    (tell)(Phase::Applying, fetcher.bytes, fetcher.bytes);

    // It may have appeared meanwhile.
    let later = match &contact {
        Some(_) => None,
        None => ground.public.find(order.database.as_str()).ok(),
    };
    let contact = contact.as_ref().or(later.as_ref());
    let taken = match contact {
        Some(contact) => match tokio::time::timeout(LET_GO, contact.take_file()).await {
            Ok(taken) => Some(taken),
            Err(_) => {
                let text = format!("{} is busy with its first snapshot; try again later", contact.name);
                return Err(Failure::Failed(text));
            }
        },
        None => None,
    };
    let sum = safety.map(|safety| safety.checksum);
    let swap = Swap { staged: staged.0.clone(), path: path.clone(), id: order.id.clone(), safety: sum };
    // Whoever gives up waiting for it: the file is nobody else's until the swap has ended.
    let swapped = tokio::task::spawn_blocking(move || {
        let _until_then = (taken, staged);
        swap.run()
    });
    let swapped = swapped.await.map_err(bug)?;
    let Swapped { proven, kept } = swapped.map_err(|why| Failure::Failed(why.to_string()))?;
    let safety_txid = safety.filter(|_| proven).map(|safety| safety.txid);
    tracing::info!(
        database = %order.database, path = %path.display(), until = %order.until,
        safety_txid = safety_txid.map(|txid| txid.get()), kept = ?kept, "another file took its place"
    );
    let new_txid = match contact {
        Some(contact) => followed(contact).await.filter(|txid| Some(*txid) != safety_txid),
        None => None,
    };
    Ok(Outcome { reached: order.until, new_txid, safety_txid, bytes: fetcher.bytes, kept })
}

/// The new file while it has no name; removed when dropped, if it is still there.
struct Staged(PathBuf);

impl Drop for Staged {
    fn drop(&mut self) {
        // It has its name, or was never made.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The file itself, which nobody else has open; found out before anything is fetched.
async fn closed(path: PathBuf) -> Result<PathBuf, Failure> {
    let looked = tokio::task::spawn_blocking(move || {
        let path = real(&path);
        match in_the_way(&path) {
            Some(who) => Err(Failure::Failed(swap::NotSwapped::Open(who, path).to_string())),
            None => Ok(path),
        }
    });
    looked.await.map_err(bug)?
}

/// The newest position of what is there, at the hub; `None` when it cannot be captured: then the file is kept.
async fn safety(ground: &Ground, contact: &Contact) -> Result<Option<Pos>, Failure> {
    let captured = async {
        let Done::Captured(Some(txid)) = sync(contact).await? else {
            return Err(Failure::Failed("there is no transaction yet".into()));
        };
        contact.report.reached(txid, Level::Buffered).await;
        resolve(ground, &contact.name, Point::Txid(txid.get())).await
    };
    // A file that is not followed answers at once.
    match tokio::time::timeout(SYNC_PATIENCE, captured).await {
        Ok(Ok((position, _))) => Ok(Some(position)),
        Ok(Err(Failure::Cancelled)) => Err(Failure::Cancelled),
        Ok(Err(Failure::Failed(reason))) => {
            tracing::warn!(database = %contact.name, reason, "what is there now is no restore point: the file will be kept");
            Ok(None)
        }
        Err(_) => {
            tracing::warn!(database = %contact.name, "what is there now does not get to the hub in time: the file will be kept");
            Ok(None)
        }
    }
}

/// Asks the database's task for everything that is committed; again while it is about to follow, which may come after the order when
/// the agent has just started.
async fn sync(contact: &Contact) -> Result<Done, Failure> {
    let deadline = Instant::now() + FOLLOWED;
    loop {
        match contact.ask(Ask::Sync).await {
            Err(not_yet) if PASSING.contains(&not_yet.code) && Instant::now() < deadline => {
                let state = contact.report.status().state;
                if !matches!(
                    state,
                    State::Starting
                        | State::WaitingForHub
                        | State::Offline
                        | State::Opening
                        | State::CatchingUp
                        | State::Following
                ) {
                    return Err(refused(not_yet));
                }
                tokio::time::sleep(AGAIN).await;
            }
            answer => return answer.map_err(refused),
        }
    }
}

/// The transaction that the new file is, once the hub has it; `None` when that takes too long: it gets there all the same.
async fn followed(contact: &Contact) -> Option<Txid> {
    let deadline = Instant::now() + FOLLOWED;
    let txid = loop {
        match contact.ask(Ask::Sync).await {
            Ok(Done::Captured(txid)) => break txid?,
            Ok(_) => return None,
            Err(refused) if Instant::now() >= deadline => {
                tracing::warn!(database = %contact.name, reason = refused.message, "restored, and not followed yet");
                return None;
            }
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    };
    let reached = contact.report.reached(txid, Level::Buffered);
    if tokio::time::timeout(SHIP_PATIENCE, reached).await.is_err() {
        tracing::warn!(database = %contact.name, txid = txid.get(), "restored; the hub does not have that transaction yet");
    }
    Some(txid)
}
