//! What people read when something went wrong: one sentence on stderr, and an exit code that means something.

use std::error::Error as StdError;
use std::process::ExitCode;
use tonic::{Code, Status};
use walhub_common::tls;

/// The command line asks for something that cannot be: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Ctrl-C or SIGTERM: exit code 130.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("interrupted; nothing half-written is left behind")]
pub(crate) struct Interrupted;

/// Prints an error and gives its exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let closed = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    if error.downcast_ref().is_some_and(closed) {
        return ExitCode::SUCCESS; // the reader of our output (`| head`) has seen enough
    }
    eprintln!("hubctl: {}", clean(&format!("{error:#}")));
    match error {
        _ if error.is::<Usage>() => ExitCode::from(2),
        _ if error.is::<Interrupted>() => ExitCode::from(130),
        _ => ExitCode::FAILURE,
    }
}

/// Words of the hub that people may read: no control characters, no novels.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).take(4000).collect()
}

/// A gRPC status as a sentence. What the hub says to people is passed on; its inner troubles stay in its log.
pub(crate) fn sentence(status: &Status) -> String {
    let source = status.source();
    if let Some(text) = source.and_then(tls::explain) {
        return text;
    }
    let said = |otherwise: &str| match status.message().trim() {
        "" => otherwise.to_owned(),
        text => clean(text),
    };
    match status.code() {
        _ if source.is_some() => "the connection to the hub was lost; try again".into(),
        Code::PermissionDenied => format!("not allowed: {}", said("this certificate may not do that")),
        Code::Unauthenticated => {
            format!("not accepted by the hub: {}", said("this certificate is not known"))
        }
        Code::NotFound | Code::FailedPrecondition | Code::InvalidArgument | Code::OutOfRange => {
            said("the hub cannot do that")
        }
        Code::AlreadyExists | Code::Aborted => said("the hub gave up; try again"),
        Code::DataLoss => format!("data is missing or damaged: {}", said("the hub's log says more")),
        Code::ResourceExhausted => format!("the hub is at a limit: {}", said("try again later")),
        Code::Unavailable => said("the hub is not ready; try again"),
        Code::DeadlineExceeded | Code::Cancelled => "the hub did not answer in time; try again".into(),
        Code::Unimplemented => "the hub does not know this command: it is of another version".into(),
        Code::Ok | Code::Internal | Code::Unknown => "the hub failed inside; its log says more".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_the_hubs_words_but_not_its_insides() {
        assert_eq!(sentence(&Status::not_found("the hub does not know a/b")), "the hub does not know a/b");
        assert!(sentence(&Status::permission_denied("x is y's")).starts_with("not allowed: x is y's"));
        let inner = sentence(&Status::internal("thread panicked at src/db.rs:17"));
        assert!(!inner.contains("db.rs") && inner.contains("log"), "{inner}");
        assert_eq!(sentence(&Status::not_found("a\u{1b}[31mb")), "a [31mb");
    }

    #[test]
    fn a_lost_connection_is_named_as_one() {
        let status = Status::from_error(Box::new(std::io::Error::other("h2 protocol error")));
        assert!(sentence(&status).contains("connection to the hub was lost"), "{}", sentence(&status));
    }
}
