//! What can go wrong at a destination, as nouns: where, doing what, to which file, why, and what a person can do.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;
use walhub_common::DestinationName;
use walhub_common::backoff::Class;

/// A failed call at a destination.
#[derive(Debug, Clone, thiserror::Error)]
#[error("destination {destination}: cannot {operation} {subject}: {fault}")]
pub struct DestinationError {
    /// Name in the configuration.
    pub destination: DestinationName,
    /// What was asked for.
    pub operation: Operation,
    /// The file, folder or bucket it was asked of.
    pub subject: String,
    /// Why it did not happen.
    pub fault: Fault,
}

/// The calls of [`super::Destination`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// Making the client.
    Build,
    /// Storing a file.
    Put,
    /// Listing a level.
    List,
    /// Reading a file.
    Open,
    /// Removing files.
    Delete,
    /// Testing the destination.
    Probe,
}

impl Operation {
    /// In lower case, for messages and counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Build => "build",
            Operation::Put => "put",
            Operation::List => "list",
            Operation::Open => "open",
            Operation::Delete => "delete",
            Operation::Probe => "probe",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a call failed. Each text ends with what to do, where a person can do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A file of this name with other content is there. Never overwritten.
    #[error(
        "a different file of this name is there already ({0}); another hub may write to this place: give every hub \
         its own path or prefix"
    )]
    Conflict(String),
    /// There is no such file.
    #[error("there is no such file")]
    NotFound,
    /// Credentials or permissions.
    #[error("access denied: {0}; check the credentials and their permission to read, write and list here")]
    Denied(String),
    /// The destination asks for fewer requests.
    #[error("it asks to slow down: {0}")]
    Throttled(String),
    /// It cannot be reached, or fails on its own side. Nothing was stored by this call, or the store can be repeated.
    #[error("it is unavailable: {0}")]
    Unavailable(String),
    /// No answer in time.
    #[error("no answer within {} s; whether it happened is not known", after.as_secs_f32())]
    TimedOut {
        /// How long we waited.
        after: Duration,
    },
    /// The connection broke after the request was sent.
    #[error("the connection broke ({0}); whether it happened is not known")]
    Interrupted(String),
    /// We were asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// No space, or a quota.
    #[error("it is full: {0}; make room or raise the quota, walhub goes on by itself then")]
    Full(String),
    /// A lock or a legal hold keeps the file from being deleted.
    #[error("it is locked: {0}; it can go once its retention time is over or its legal hold is lifted")]
    Locked(String),
    /// Mounted read-only.
    #[error("it is read-only: {0}; mount it for writing")]
    ReadOnly(String),
    /// What came back is not what must be there.
    #[error("corrupt: {0}")]
    Corrupt(String),
    /// The bucket or folder is not there. What was in it may be gone as well, even when it is back.
    #[error("{0}")]
    Gone(String),
    /// Wrong bucket, region, endpoint, path, …
    #[error("{0}")]
    Misconfigured(String),
    /// Create-only puts are not honoured.
    #[error(
        "the server does not honour create-only puts (If-None-Match): {0}; two hubs could overwrite each other's \
         files here without an error, so walhub refuses this server: use one that answers 412, or type: file"
    )]
    NoFence(String),
    /// The request was refused for another reason.
    #[error("refused: {0}")]
    Rejected(String),
    /// The local file that was to be stored could not be read. Nothing is wrong with the destination.
    #[error("the local file to be stored could not be read: {0}")]
    Body(String),
}

impl DestinationError {
    /// What the failure means for a retry. `put` may be repeated after any class: it compares before it reports a
    /// conflict, so [`Class::Unknown`] needs no look of the caller's own.
    pub fn class(&self) -> Class {
        match &self.fault {
            Fault::Throttled(_) => Class::Throttled,
            // Space, or a disk, may come back at any moment, and asking costs nothing.
            Fault::Unavailable(_) | Fault::Gone(_) | Fault::Full(_) | Fault::Body(_) => Class::Transient,
            // Only a write leaves a question behind; what is deleted twice is gone as well.
            Fault::TimedOut { .. } | Fault::Interrupted(_) if self.operation == Operation::Put => {
                Class::Unknown
            }
            Fault::TimedOut { .. } | Fault::Interrupted(_) => Class::Transient,
            Fault::Cancelled => Class::Cancelled,
            Fault::Conflict(_)
            | Fault::NotFound
            | Fault::Denied(_)
            | Fault::Locked(_)
            | Fault::ReadOnly(_)
            | Fault::Corrupt(_)
            | Fault::Misconfigured(_)
            | Fault::NoFence(_)
            | Fault::Rejected(_) => Class::Permanent,
        }
    }
}

/// Where and what: turns a [`Fault`] into a [`DestinationError`]. Cheap to make for every call.
#[derive(Debug, Clone)]
pub struct Context {
    destination: DestinationName,
    operation: Operation,
    subject: String,
}

impl Context {
    /// Of one call.
    pub fn new(destination: &DestinationName, operation: Operation, subject: impl fmt::Display) -> Self {
        Self { destination: destination.clone(), operation, subject: subject.to_string() }
    }

    /// The error of this call.
    pub fn error(&self, fault: Fault) -> DestinationError {
        DestinationError {
            destination: self.destination.clone(),
            operation: self.operation,
            subject: self.subject.clone(),
            fault,
        }
    }

    /// The error of this call for an I/O error at `path`.
    pub fn io(&self, path: &std::path::Path, error: &std::io::Error) -> DestinationError {
        self.error(io_fault(path, error))
    }
}

/// Several files as the subject of one call: the first, and how many more.
pub(super) fn many<T: fmt::Display>(items: &[T]) -> String {
    match items {
        [] => "nothing".to_owned(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

/// What an I/O error at `path` means.
fn io_fault(path: &std::path::Path, error: &std::io::Error) -> Fault {
    use std::io::ErrorKind;
    let text = format!("{}: {error}", path.display());
    match error.kind() {
        ErrorKind::NotFound => Fault::NotFound,
        ErrorKind::PermissionDenied => Fault::Denied(text),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Fault::Full(text),
        ErrorKind::ReadOnlyFilesystem => Fault::ReadOnly(text),
        ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::InvalidFilename => {
            Fault::Misconfigured(format!("{text}; correct the path"))
        }
        _ => Fault::Unavailable(text),
    }
}

/// An error with its causes, each once.
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The first error of that type among an error and its causes.
pub(super) fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| error.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};
    use std::path::Path;

    fn context(operation: Operation) -> Context {
        Context::new(&DestinationName::new("offsite").unwrap(), operation, "node/app.db 1-1")
    }

    #[test]
    fn an_error_names_the_place_the_call_the_file_and_the_cause() {
        let error = context(Operation::Put).error(Fault::Denied("403 AccessDenied".into()));
        assert_eq!(
            error.to_string(),
            "destination offsite: cannot put node/app.db 1-1: access denied: 403 AccessDenied; check the credentials \
             and their permission to read, write and list here"
        );
    }

    #[test]
    fn only_a_put_leaves_an_unknown_outcome() {
        let fault = Fault::TimedOut { after: Duration::from_secs(3) };
        assert_eq!(context(Operation::Put).error(fault.clone()).class(), Class::Unknown);
        assert_eq!(context(Operation::List).error(fault).class(), Class::Transient);
    }

    #[test]
    fn disk_errors_become_faults() {
        let fault = |kind| io_fault(Path::new("/d"), &Error::from(kind));
        assert!(matches!(fault(ErrorKind::StorageFull), Fault::Full(_)));
        assert!(matches!(fault(ErrorKind::QuotaExceeded), Fault::Full(_)));
        assert!(matches!(fault(ErrorKind::ReadOnlyFilesystem), Fault::ReadOnly(_)));
        assert!(matches!(fault(ErrorKind::PermissionDenied), Fault::Denied(_)));
        assert!(matches!(fault(ErrorKind::NotFound), Fault::NotFound));
        assert!(matches!(io_fault(Path::new("/d"), &Error::from_raw_os_error(5)), Fault::Unavailable(_)));
    }

    #[test]
    fn a_chain_says_each_thing_once() {
        let inner = Error::other("connection refused");
        let outer = Error::other(inner);
        assert_eq!(chain(&outer), "connection refused");
    }
}
