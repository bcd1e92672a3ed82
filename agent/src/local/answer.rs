//! From a request to its answer: finds the database, asks its task, waits as long as the asker wants to.

use super::protocol::{
    Answer, Checkpointed, MAX_PAUSE_MS, MAX_REQUEST_BYTES, Paused, Problem, Request, Restored, Resumed,
    Synced, TIMEOUT,
};
use super::status::Facts;
use crate::database::{Ask, Contact, Done, Level, Refused};
use crate::restore::{self, Failure, Ground, Mode, Order, Point};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::Txid;

/// The answer to one line.
pub(super) async fn answer(line: &[u8], facts: &Facts) -> Answer {
    match serde_json::from_slice::<Request>(line) {
        Ok(request) => answer_request(request, facts).await.unwrap_or_else(Answer::problem),
        Err(e) => bad_request(e),
    }
}

/// A line that cannot be answered.
pub(super) fn bad_request(why: impl std::fmt::Display) -> Answer {
    let advice = format!(
        "send one JSON object per line, at most {MAX_REQUEST_BYTES} bytes, such as {{\"op\":\"status\"}}; the README \
         lists the others"
    );
    Answer::problem(Refused::new("bad-request", why.to_string(), &advice).into())
}

async fn answer_request(request: Request, facts: &Facts) -> Result<Answer, Problem> {
    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(request.timeout_ms());
    let answer = match request {
        Request::Status => Answer::done(&facts.status()),
        Request::Sync { database, wait, .. } => {
            let contact = facts.public.find(&database)?;
            let synced = async {
                let txid = match contact.ask(Ask::Sync).await? {
                    Done::Captured(txid) => txid,
                    other => return Err(unexpected(other)),
                };
                if let Some(txid) = txid {
                    contact.report.reached(txid, wait).await;
                }
                Ok(txid.map_or(0, walhub_common::Txid::get))
            };
            let txid = match tokio::time::timeout_at(deadline, synced).await {
                Ok(synced) => synced?,
                Err(_) => return Err(not_in_time(&contact, wait)),
            };
            let waited_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            Answer::done(&Synced { database: contact.name.to_string(), txid, level: wait, waited_ms })
        }
        Request::Checkpoint { database, shrink, .. } => {
            let contact = facts.public.find(&database)?;
            let Done::Checkpointed(done) = ask(&contact, Ask::Checkpoint { shrink }, deadline).await? else {
                return Err(unexpected("no checkpoint").into());
            };
            Answer::done(&Checkpointed {
                database: contact.name.to_string(),
                complete: done.complete,
                truncated: done.truncated,
                held_us: u64::try_from(done.held.as_micros()).unwrap_or(u64::MAX),
                wal_bytes: contact.report.status().wal_bytes,
            })
        }
        Request::Pause { database, for_ms, .. } => {
            let contact = facts.public.find(&database)?;
            if for_ms == 0 || for_ms > MAX_PAUSE_MS {
                let message = format!("a pause of {for_ms} ms");
                return Err(Refused::new("bad-request", message, "pause for 1 ms to 24 hours").into());
            }
            let pause = Ask::Pause(Duration::from_millis(for_ms));
            let Done::Paused(until_ms) = ask(&contact, pause, deadline).await? else {
                return Err(unexpected("no pause").into());
            };
            Answer::done(&Paused { database: contact.name.to_string(), until_ms })
        }
        Request::Resume { database, .. } => {
            let contact = facts.public.find(&database)?;
            let Done::Resumed { was_paused } = ask(&contact, Ask::Resume, deadline).await? else {
                return Err(unexpected("no end of a pause").into());
            };
            Answer::done(&Resumed { database: contact.name.to_string(), was_paused })
        }
        Request::Restore { database, txid, timestamp_ms, checks, .. } => {
            let point = match (txid, timestamp_ms) {
                (None, None) => Point::Latest,
                (Some(txid), None) => Point::Txid(txid),
                (None, Some(ms)) => Point::Time(ms),
                (Some(_), Some(_)) => {
                    let message = "both a transaction and a time";
                    return Err(Refused::new("bad-request", message, "give one of them").into());
                }
            };
            let contact = facts.public.find(&database)?;
            Box::pin(restore(&contact, point, checks, facts, deadline)).await?
        }
    };
    Ok(answer)
}

/// Given up at the deadline; what is being applied by then comes to its end.
async fn restore(
    contact: &Contact,
    point: Point,
    checks: Vec<String>,
    facts: &Facts,
    deadline: Instant,
) -> Result<Answer, Problem> {
    let begun = Instant::now();
    let ground = Ground { shared: facts.shared.clone(), public: facts.public.clone() };
    let cancel = CancellationToken::new();
    let restored = async {
        let (until, time_ms) = restore::resolve(&ground, &contact.name, point).await?;
        let order = Order {
            id: "local".into(),
            database: contact.name.clone(),
            path: contact.path.clone(),
            until,
            mode: Mode::InPlace,
            checks,
            max_bytes_per_second: None,
        };
        Ok((restore::execute(&ground, &order, &|_, _, _| {}, &cancel).await?, time_ms))
    };
    tokio::pin!(restored);
    let done = tokio::select! {
        done = &mut restored => done,
        () = tokio::time::sleep_until(deadline) => {
            cancel.cancel();
            restored.await
        }
    };
    let (outcome, time_ms) = done.map_err(|failure| match failure {
        Failure::Cancelled => {
            let message = format!("{} was not brought back in time; it is as it was", contact.name);
            Refused::new(TIMEOUT, message, "allow it more time")
        }
        Failure::Failed(message) => Refused { code: "failed", message, what_to_do: None },
    })?;
    Ok(Answer::done(&Restored {
        database: contact.name.to_string(),
        txid: outcome.reached.txid.get(),
        checksum: outcome.reached.checksum.to_string(),
        time_ms,
        new_txid: outcome.new_txid.map(Txid::get),
        safety_txid: outcome.safety_txid.map(Txid::get),
        fetched_bytes: outcome.bytes,
        waited_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    }))
}

async fn ask(contact: &Contact, ask: Ask, deadline: Instant) -> Result<Done, Problem> {
    match tokio::time::timeout_at(deadline, contact.ask(ask)).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            let status = contact.report.status();
            let message = format!("{} did not get to it in time, it is {}", contact.name, status.state);
            Err(Refused::new(TIMEOUT, message, &status.what_to_do.unwrap_or_else(|| "try again".into()))
                .into())
        }
    }
}

/// How far a sync came.
fn not_in_time(contact: &Contact, level: Level) -> Problem {
    let status = contact.report.status();
    let (held, what) = match level {
        Level::Buffered => (status.buffered_txid, "on the hub's disk"),
        Level::Durable => (status.durable_txid, "in enough destinations"),
    };
    let message = format!(
        "not safe in time: {} is {}, transaction {} was read, {held} is {what}{}",
        contact.name,
        status.state,
        status.captured_txid,
        status.last_error.map_or_else(String::new, |why| format!(" ({why})")),
    );
    let what_to_do = "nothing is lost; `walhub-agent status` shows whether the hub is reached, and `hubctl status` which copy lags";
    Refused::new(TIMEOUT, message, what_to_do).into()
}

fn unexpected(what: impl std::fmt::Debug) -> Refused {
    Refused::new("failed", format!("BUG: the answer to something else: {what:?}"), "report it")
}
