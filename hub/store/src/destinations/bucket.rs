//! What all buckets have in common, whoever's they are: the names of objects, how long a request may take, and when an
//! object that is there already is ours.

use super::{Fault, FileKey, Put};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::name;
use walhub_common::{DatabaseKey, Level};

/// How long to wait for the answer to a request without a body worth mentioning, when the configuration does not say.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The slowest line on which a transfer is still given time to end.
const MIN_BYTES_PER_SECOND: u64 = 64 * 1024;

/// How long `bytes` may take on the slowest line.
pub(super) fn transfer_time(bytes: u64) -> Duration {
    Duration::from_secs(bytes / MIN_BYTES_PER_SECOND)
}

/// Names of objects below a prefix.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// Without slashes at its ends; may be empty.
    prefix: String,
    level: fn(Level) -> String,
}

impl Names {
    /// Below `prefix`; `level` names the folder of a level, which differs by kind.
    pub(super) fn new(prefix: &str, level: fn(Level) -> String) -> Self {
        Self { prefix: prefix.trim_matches('/').to_owned(), level }
    }

    /// The prefix.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A name below the prefix.
    pub(super) fn below(&self, rest: &str) -> String {
        if self.prefix.is_empty() { rest.to_owned() } else { format!("{}/{rest}", self.prefix) }
    }

    /// The folder of one level of a database, with a slash at its end.
    pub(super) fn folder(&self, database: &DatabaseKey, level: Level) -> String {
        self.below(&format!("{database}/{}/", (self.level)(level)))
    }

    /// The object of a file.
    pub(super) fn object(&self, key: &FileKey) -> String {
        format!("{}{}", self.folder(&key.database, key.level), name::file_name(key.range))
    }
}

/// Waits for the answer to a request, at most `after`, and not past `cancel`.
pub(super) fn within<T>(
    after: Duration,
    cancel: &CancellationToken,
    request: impl Future<Output = T>,
) -> impl Future<Output = Result<T, Fault>> {
    // The clients' futures are large; they do not belong inside every caller's.
    let request = Box::pin(tokio::time::timeout(after, request));
    async move {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Fault::Cancelled),
            answer = request => answer.map_err(|_| Fault::TimedOut { after }),
        }
    }
}

/// Whether an object that has the name already is ours, by its size in bytes and the digest kept with it; `None` when it has
/// none and its bytes must be compared.
pub(super) fn judge(there: (u64, Option<&str>), ours: (u64, &str)) -> Result<Option<Put>, Fault> {
    if there.0 != ours.0 {
        return Err(Fault::Conflict(format!("it has {} bytes, ours {}", there.0, ours.0)));
    }
    match there.1 {
        Some(theirs) if theirs == ours.1 => Ok(Some(Put::AlreadyThere)),
        Some(_) => Err(Fault::Conflict("it has our size but another checksum".into())),
        None => Ok(None),
    }
}
