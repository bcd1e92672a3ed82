//! A trial of everything a hub asks of a destination, step by step, with a cause for what fails: for people who set one up.
//!
//! It works on an object of its own below `walhub/check`, which it deletes, and stops at the first step that fails (but
//! still tries to delete).

use super::{Body, Destination, DestinationError, Fault, ObjectPath, Put, PutMode, object};
use bytes::Bytes;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use walhub_common::clock;

/// A step without an answer in this time has failed.
const STEP_DEADLINE: Duration = Duration::from_secs(10);
/// Servers refuse signatures that are older or newer than this; half of it is worth a word.
const MAX_SKEW_MS: i64 = 15 * 60 * 1000 / 2;
const FOLDER: &str = "walhub/check";

/// One step of a trial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// `put`, `conditional put`, `get`, `list`, `clock`, `delete`.
    pub name: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// How long it took.
    pub elapsed: Duration,
}

/// How a step went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// As it must; the text is a remark, mostly empty.
    Passed(String),
    /// It did not: why, in a word and in a sentence.
    Failed(Cause, String),
    /// A step before had failed.
    Skipped,
}

/// Why a step failed, in a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Credentials, or what they may do.
    Permission,
    /// The clocks of the hub and the destination are too far apart.
    Clock,
    /// Certificates.
    Tls,
    /// There is no such bucket, container or folder.
    Bucket,
    /// The bucket lies in another region, or behind another endpoint.
    Region,
    /// Create-only puts are not honoured.
    Fence,
    /// It cannot be reached, or does not answer.
    Network,
    /// It asks for fewer requests.
    Throttled,
    /// No room.
    Full,
    /// Mounted read-only.
    ReadOnly,
    /// Anything else: the sentence says it.
    Other,
}

impl Cause {
    /// In lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Permission => "permission",
            Cause::Clock => "clock",
            Cause::Tls => "tls",
            Cause::Bucket => "bucket missing",
            Cause::Region => "region",
            Cause::Fence => "conditional put",
            Cause::Network => "network",
            Cause::Throttled => "throttled",
            Cause::Full => "full",
            Cause::ReadOnly => "read-only",
            Cause::Other => "other",
        }
    }

    /// Of a fault. Servers tell some causes only in their words.
    pub fn of(fault: &Fault) -> Cause {
        let text = fault.to_string().to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        match fault {
            _ if says(&["requesttimetooskewed", "too skewed", "date header too old", "requestexpired"]) => {
                Cause::Clock
            }
            _ if says(&["certificate", "tls handshake", "received corrupt message"]) => Cause::Tls,
            Fault::Denied(_) => Cause::Permission,
            Fault::Misconfigured(_) if says(&["`region`"]) => Cause::Region,
            Fault::Gone(_) => Cause::Bucket,
            Fault::NoFence(_) => Cause::Fence,
            Fault::Unavailable(_) | Fault::TimedOut { .. } | Fault::Interrupted(_) => Cause::Network,
            Fault::Throttled(_) => Cause::Throttled,
            Fault::Full(_) => Cause::Full,
            Fault::ReadOnly(_) => Cause::ReadOnly,
            _ => Cause::Other,
        }
    }
}

/// Tries a destination. Every step is in the answer, in order.
pub async fn check(destination: &dyn Destination, cancel: &CancellationToken) -> Vec<Step> {
    let path =
        ObjectPath::new(format!("{FOLDER}/{:016x}", rand::random::<u64>())).expect("BUG: a legal path");
    let trial = Trial { destination, path, cancel };
    let mut steps = Vec::new();
    let mut failed = false;
    let mut add = |name, outcome: Option<Outcome>, began: Instant| {
        let outcome = outcome.unwrap_or(Outcome::Skipped);
        failed |= matches!(outcome, Outcome::Failed(..));
        steps.push(Step { name, outcome, elapsed: began.elapsed() });
        failed
    };
    let began = Instant::now();
    let mut over = add("put", Some(within(trial.put()).await), began);
    // Not even the first put came about: there is nothing to delete either.
    let nothing = over;
    let began = Instant::now();
    let outcome = if over { None } else { Some(within(trial.fence()).await) };
    over = add("conditional put", outcome, began);
    let began = Instant::now();
    let outcome = if over { None } else { Some(within(trial.get()).await) };
    over = add("get", outcome, began);
    let began = Instant::now();
    let (listed, skew) = if over { (None, None) } else { split(within(trial.list()).await) };
    add("list", listed, began);
    add("clock", skew, Instant::now());
    let began = Instant::now();
    let outcome = if nothing { None } else { Some(within(trial.delete()).await) };
    add("delete", outcome, began);
    steps
}

/// A listing that says when the object was stored shows the clock there as well.
fn split(listed: Outcome) -> (Option<Outcome>, Option<Outcome>) {
    match listed {
        Outcome::Passed(at) => match at.parse() {
            Ok(modified_ms) => {
                (Some(Outcome::Passed(String::new())), Some(skew(clock::now_ms(), modified_ms)))
            }
            Err(_) => (Some(Outcome::Passed(at)), None),
        },
        failed => (Some(failed), None),
    }
}

fn skew(now_ms: i64, stored_ms: i64) -> Outcome {
    let ahead_ms = stored_ms - now_ms;
    if ahead_ms.abs() < MAX_SKEW_MS {
        return Outcome::Passed(String::new());
    }
    let way = if ahead_ms > 0 { "ahead of" } else { "behind" };
    let text =
        format!("the clock there is {} s {way} the hub's; set the hub's clock (NTP)", ahead_ms.abs() / 1000);
    Outcome::Failed(Cause::Clock, text)
}

async fn within(step: impl Future<Output = Result<String, Fault>>) -> Outcome {
    match tokio::time::timeout(STEP_DEADLINE, Box::pin(step)).await {
        Ok(Ok(remark)) => Outcome::Passed(remark),
        Ok(Err(fault)) => Outcome::Failed(Cause::of(&fault), fault.to_string()),
        Err(_) => {
            let fault = Fault::TimedOut { after: STEP_DEADLINE };
            Outcome::Failed(Cause::of(&fault), format!("no answer within {} s", STEP_DEADLINE.as_secs()))
        }
    }
}

struct Trial<'a> {
    destination: &'a dyn Destination,
    path: ObjectPath,
    cancel: &'a CancellationToken,
}

impl Trial<'_> {
    async fn put_text(&self, text: String) -> Result<Put, DestinationError> {
        let body = Body::Bytes(Bytes::from(text));
        self.destination.put_object(&self.path, body, PutMode::Create, self.cancel).await
    }

    async fn put(&self) -> Result<String, Fault> {
        self.put_text(format!("first {}", self.path)).await.map_err(|error| error.fault)?;
        Ok(String::new())
    }

    async fn fence(&self) -> Result<String, Fault> {
        match self.put_text(format!("other {}", self.path)).await {
            Err(error) if matches!(error.fault, Fault::Conflict(_)) => Ok(String::new()),
            Err(error) => Err(error.fault),
            Ok(_) => Err(Fault::NoFence("a second put of one name was accepted".into())),
        }
    }

    async fn get(&self) -> Result<String, Fault> {
        let stream = self.destination.open_object(&self.path, 6..u64::MAX, self.cancel).await;
        let read =
            object::collect(stream.map_err(|error| error.fault)?, 4096).await.map_err(|error| error.fault)?;
        if read == self.path.as_str().as_bytes() {
            return Ok(String::new());
        }
        Err(Fault::Corrupt("what was written does not come back".into()))
    }

    /// The time of the object there, Unix ms.
    async fn list(&self) -> Result<String, Fault> {
        let folder = ObjectPath::new(FOLDER).expect("BUG: a legal path");
        let mut after = None;
        loop {
            let page = self.destination.list_objects(&folder, after.as_ref(), self.cancel).await;
            let page = page.map_err(|error| error.fault)?;
            if let Some(found) = page.iter().find(|found| found.path == self.path) {
                return Ok(found.modified_ms.to_string());
            }
            let Some(last) = page.last() else {
                return Err(Fault::Corrupt("what was written is not listed".into()));
            };
            after = Some(last.path.clone());
        }
    }

    async fn delete(&self) -> Result<String, Fault> {
        match self.destination.delete_objects(std::slice::from_ref(&self.path), self.cancel).await {
            Ok(()) => Ok(String::new()),
            Err(error) => match error.fault {
                // That is what an object lock is for.
                Fault::Locked(text) => Ok(format!("kept by its lock: {text}")),
                fault => Err(fault),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destinations::config::FileConfig;
    use crate::destinations::file::FileDestination;
    use walhub_common::DestinationName;

    async fn trial(path: &std::path::Path) -> Vec<Step> {
        let name = DestinationName::new("disk").unwrap();
        let destination = FileDestination::new(name, &FileConfig { path: path.to_owned() });
        check(&destination, &CancellationToken::new()).await
    }

    #[tokio::test]
    async fn a_good_place_passes_every_step_and_nothing_stays() {
        let folder = tempfile::tempdir().unwrap();
        let steps = trial(folder.path()).await;
        let names: Vec<_> = steps.iter().map(|step| step.name).collect();
        assert_eq!(names, ["put", "conditional put", "get", "list", "clock", "delete"]);
        assert!(steps.iter().all(|step| step.outcome == Outcome::Passed(String::new())), "{steps:?}");
        let left = std::fs::read_dir(folder.path().join(FOLDER)).unwrap().count();
        assert_eq!(left, 0);
    }

    #[tokio::test]
    async fn the_first_fault_is_named_and_the_rest_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let steps = trial(&folder.path().join("gone")).await;
        assert!(matches!(steps[0].outcome, Outcome::Failed(Cause::Bucket, _)), "{steps:?}");
        assert!(steps[1..].iter().all(|step| step.outcome == Outcome::Skipped), "{steps:?}");
    }

    #[test]
    fn causes_are_told_apart() {
        let denied = |text: &str| Cause::of(&Fault::Denied(text.into()));
        let wrong = |text: &str| Cause::of(&Fault::Misconfigured(text.into()));
        assert_eq!(denied("403 SignatureDoesNotMatch"), Cause::Permission);
        assert_eq!(denied("403 RequestTimeTooSkewed: The difference is too large"), Cause::Clock);
        assert_eq!(denied("403 AuthenticationFailed: Request date header too old"), Cause::Clock);
        assert_eq!(Cause::of(&Fault::Gone("404 NoSuchBucket".into())), Cause::Bucket);
        assert_eq!(wrong("301 PermanentRedirect; correct `region` or `endpoint`"), Cause::Region);
        assert_eq!(wrong("invalid peer certificate: UnknownIssuer"), Cause::Tls);
        assert_eq!(Cause::of(&Fault::NoFence("x".into())), Cause::Fence);
        assert_eq!(Cause::of(&Fault::Unavailable("connection refused".into())), Cause::Network);
    }

    #[test]
    fn a_clock_that_is_far_off_is_seen_before_signatures_fail() {
        assert_eq!(skew(1_000_000, 1_000_500), Outcome::Passed(String::new()));
        for stored_ms in [1_000_000 + MAX_SKEW_MS, 1_000_000 - MAX_SKEW_MS] {
            assert!(matches!(skew(1_000_000, stored_ms), Outcome::Failed(Cause::Clock, _)));
        }
    }
}
