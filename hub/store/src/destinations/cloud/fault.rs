//! What an answer of the clients means.
//!
//! The client keeps the type of most of its errors to itself; the status is read from its words. The contract against real
//! servers notices when those change.

use crate::destinations::Fault;
use crate::destinations::error::{chain, find};
use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};
use std::io;

/// Longest text taken over from an answer.
const MAX_TEXT_BYTES: usize = 400;
/// Where machines of the clouds are asked for their own credentials.
const METADATA_HOSTS: [&str; 3] = ["metadata.google.internal", "169.254.169.254", "metadata/identity"];

/// Why a request gave nothing: two answers that callers look for, and all others.
#[derive(Debug)]
pub(super) enum CallError {
    /// The name is taken.
    Exists,
    /// 416: nothing lies in the range asked for.
    RangeNotSatisfiable,
    /// Anything else.
    Fault(Fault),
}

impl CallError {
    /// For callers that have sent neither a condition nor a range.
    pub(super) fn into_fault(self) -> Fault {
        match self {
            CallError::Fault(fault) => fault,
            CallError::Exists => Fault::Rejected("the name is taken".into()),
            CallError::RangeNotSatisfiable => Fault::Rejected("416 the range holds nothing".into()),
        }
    }
}

/// Maps any failure of a request.
pub(super) fn explain(error: &Error) -> CallError {
    let text = chain(error);
    if METADATA_HOSTS.iter().any(|host| text.contains(host)) {
        return CallError::Fault(Fault::Denied(format!("no credentials: {}", short(&text))));
    }
    if let Some(status) = status(&text) {
        return explain_answer(status, &answer(&text));
    }
    // The client's own judgement of a range that begins at the end.
    if text.contains("but object was only") {
        return CallError::RangeNotSatisfiable;
    }
    CallError::Fault(match (error, find::<HttpError>(error).map(HttpError::kind)) {
        (_, _) if text.contains("invalid peer certificate") => Fault::Misconfigured(format!(
            "{}; renew the server's certificate, or trust its CA (`ca-file`, system store)",
            short(&text)
        )),
        (_, Some(HttpErrorKind::Connect)) => Fault::Unavailable(short(&text)),
        (_, Some(_)) if never_sent(error) => Fault::Unavailable(short(&text)),
        (_, Some(_)) => Fault::Interrupted(short(&text)),
        // An answer that is not what the protocol promises: cut short, or not from such a server at all.
        (Error::Generic { .. }, None) => Fault::Interrupted(short(&text)),
        (Error::NotFound { .. }, None) => Fault::NotFound,
        (Error::PermissionDenied { .. } | Error::Unauthenticated { .. }, None) => Fault::Denied(short(&text)),
        _ => Fault::Rejected(short(&text)),
    })
}

fn never_sent(error: &Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable};
    let kind = find::<io::Error>(error).map(io::Error::kind);
    matches!(kind, Some(ConnectionRefused | HostUnreachable | NetworkDown | NetworkUnreachable))
}

/// The status in the client's words: of an answer, or of one of a batch of deletions.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ").or_else(|| text.rsplit_once("(code: "))?;
    rest.get(..3)?.parse().ok()
}

/// What the server said.
fn answer(text: &str) -> String {
    short(text.split_once("status code: ").map_or(text, |(_, answer)| answer))
}

fn short(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(MAX_TEXT_BYTES) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn explain_answer(status: u16, text: &str) -> CallError {
    let text = text.to_owned();
    let says = |words: &[&str]| {
        let lower = text.to_ascii_lowercase();
        words.iter().any(|word| lower.contains(word))
    };
    CallError::Fault(match status {
        // Before the name is called taken: GCS and Azure answer a locked object with the same statuses.
        403 | 409 | 412
            if says(&[
                "retentionpolicy",
                "retention policy",
                "immutable",
                "legal hold",
                "event-based hold",
                "temporary hold",
            ]) =>
        {
            Fault::Locked(text)
        }
        404 if says(&["nosuchbucket", "containernotfound", "bucket does not exist"]) => {
            Fault::Gone(format!("{text}; create the bucket, or correct `bucket`"))
        }
        409 if says(&["containerbeingdeleted"]) => Fault::Unavailable(text),
        409 | 412 => return CallError::Exists,
        416 => return CallError::RangeNotSatisfiable,
        404 => Fault::NotFound,
        507 => Fault::Full(text),
        403 if says(&["quotaexceeded"]) => Fault::Full(text),
        401 | 403 => Fault::Denied(text),
        429 => Fault::Throttled(text),
        503 if says(&["serverbusy", "slowdown", "slow down"]) => Fault::Throttled(text),
        408 => Fault::Interrupted(text),
        500.. => Fault::Unavailable(text),
        300..=399 => Fault::Misconfigured(format!("{text}; correct `endpoint`")),
        _ => Fault::Rejected(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> Fault {
        let source = io::Error::other(format!("Error performing PUT http://x/y in 1ms - {text}"));
        match explain(&Error::Generic { store: "test", source: Box::new(source) }) {
            CallError::Fault(fault) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_have_a_meaning() {
        let answer = |answer: &str| fault(&format!("Server returned non-2xx status code: {answer}"));
        assert!(matches!(answer("404 Not Found: <Code>NoSuchBucket</Code>"), Fault::Gone(_)));
        assert!(matches!(answer("404 Not Found: <Code>ContainerNotFound</Code>"), Fault::Gone(_)));
        assert!(matches!(answer("404 Not Found: "), Fault::NotFound));
        assert!(matches!(answer("403 Forbidden: AuthenticationFailed"), Fault::Denied(_)));
        assert!(matches!(answer("401 Unauthorized: "), Fault::Denied(_)));
        assert!(matches!(answer("429 Too Many Requests: "), Fault::Throttled(_)));
        assert!(matches!(answer("503 Service Unavailable: ServerBusy"), Fault::Throttled(_)));
        assert!(matches!(answer("503 Service Unavailable: "), Fault::Unavailable(_)));
        assert!(matches!(answer("403 Forbidden: RetentionPolicyNotMet"), Fault::Locked(_)));
        assert!(matches!(answer("409 Conflict: BlobImmutableDueToPolicy"), Fault::Locked(_)));
        assert!(matches!(answer("400 Bad Request: "), Fault::Rejected(_)));
        assert!(matches!(
            fault("Bulk delete request failed for key a: Not Found (code: 404)"),
            Fault::NotFound
        ));
        assert!(matches!(fault("nothing at http://169.254.169.254/ answers"), Fault::Denied(_)));
        assert!(matches!(fault("invalid peer certificate: UnknownIssuer"), Fault::Misconfigured(_)));
    }
}
