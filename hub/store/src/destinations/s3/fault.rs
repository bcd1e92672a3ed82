//! What an answer of the SDK means.

use crate::destinations::Fault;
use crate::destinations::error::{chain, find};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::ProvideErrorMetadata;
use std::error::Error;
use std::io;

pub(super) type SdkError<E> = aws_sdk_s3::error::SdkError<E, HttpResponse>;

/// The error type of any operation of the SDK.
pub(super) trait ServiceFault: ProvideErrorMetadata + Error + Send + Sync + 'static {}
impl<E: ProvideErrorMetadata + Error + Send + Sync + 'static> ServiceFault for E {}

/// Why a request gave nothing: two answers that callers look for, and all others.
#[derive(Debug)]
pub(super) enum CallError {
    /// 412: the name is taken.
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
            CallError::Exists => Fault::Rejected("412 PreconditionFailed".into()),
            CallError::RangeNotSatisfiable => Fault::Rejected("416 InvalidRange".into()),
        }
    }
}

/// Maps any failure of a request.
pub(super) fn explain<E: ServiceFault>(error: &SdkError<E>) -> CallError {
    if let SdkError::ServiceError(answer) = error {
        let (code, message) = (answer.err().code().unwrap_or(""), answer.err().message().unwrap_or(""));
        return explain_answer(answer.raw().status().as_u16(), code, message);
    }
    let text = chain(error);
    CallError::Fault(if find::<CredentialsError>(error).is_some() {
        Fault::Denied(format!("no credentials: {text}"))
    } else {
        match error {
            SdkError::ConstructionFailure(_) => Fault::Misconfigured(text),
            // Only the connect phase has a time limit of the SDK's own: nothing was sent.
            SdkError::TimeoutError(_) => Fault::Unavailable(text),
            SdkError::DispatchFailure(dispatch) if dispatch.is_user() => Fault::Misconfigured(text),
            // The words of rustls, whose types are not public to us.
            SdkError::DispatchFailure(_) if text.contains("invalid peer certificate") => {
                Fault::Misconfigured(format!(
                    "{text}; renew the server's certificate, or trust its CA (system store, SSL_CERT_FILE)"
                ))
            }
            SdkError::DispatchFailure(dispatch) if dispatch.is_timeout() => Fault::Unavailable(text),
            SdkError::DispatchFailure(_) if never_sent(error, &text) => Fault::Unavailable(text),
            _ => Fault::Interrupted(text),
        }
    })
}

/// True when no connection came about.
fn never_sent(error: &(dyn Error + 'static), text: &str) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable};
    let kind = find::<io::Error>(error).map(io::Error::kind);
    matches!(kind, Some(ConnectionRefused | HostUnreachable | NetworkDown | NetworkUnreachable))
        // hyper's own word for it, which names DNS and TLS failures as well; its type is not public to us.
        || text.contains("client error (Connect)")
}

fn explain_answer(status: u16, code: &str, message: &str) -> CallError {
    let text = match (code, message) {
        ("", "") => format!("status {status}"),
        (code, "") => format!("{status} {code}"),
        (code, message) => format!("{status} {code}: {message}"),
    };
    CallError::Fault(match (status, code) {
        (412, _) => return CallError::Exists,
        (416, _) => return CallError::RangeNotSatisfiable,
        // Somebody cleaned up while we were uploading.
        (_, "NoSuchUpload") => Fault::Unavailable(text),
        (_, "NoSuchBucket") => Fault::Gone(format!("{text}; create the bucket, or correct `bucket`")),
        (404, _) => Fault::NotFound,
        (301 | 307, _) | (_, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            Fault::Misconfigured(format!("{text}; correct `region` or `endpoint`"))
        }
        (507, _) | (_, "QuotaExceeded" | "XMinioStorageFull") => Fault::Full(text),
        (401 | 403, _) | (_, "ExpiredToken" | "InvalidToken") => Fault::Denied(text),
        (429, _)
        | (
            _,
            "SlowDown"
            | "TooManyRequests"
            | "Throttling"
            | "ThrottlingException"
            | "RequestLimitExceeded"
            | "BandwidthLimitExceeded",
        ) => Fault::Throttled(text),
        // Two conditional writes met; one of them was told to try again.
        (409, "ConditionalRequestConflict" | "OperationAborted") => Fault::Unavailable(text),
        (_, "RequestTimeout" | "IncompleteBody") => Fault::Interrupted(text),
        // Bytes changed on the way; sending them again is the cure.
        (_, "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch") => Fault::Interrupted(text),
        (500.., _) => Fault::Unavailable(text),
        _ => Fault::Rejected(text),
    })
}

/// What the error of one object in the answer to a deletion of many means: it has a code, but no status.
pub(super) fn of_deletion(code: &str, text: &str) -> Fault {
    let status = match code {
        "AccessDenied" => 403,
        "InternalError" | "ServiceUnavailable" => 500,
        _ => 400,
    };
    explain_answer(status, code, text).into_fault()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(status: u16, code: &str) -> Fault {
        match explain_answer(status, code, "") {
            CallError::Fault(fault) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_have_a_meaning() {
        assert!(matches!(explain_answer(412, "PreconditionFailed", ""), CallError::Exists));
        assert!(matches!(fault(404, "NoSuchKey"), Fault::NotFound));
        assert!(matches!(fault(404, ""), Fault::NotFound));
        assert!(matches!(fault(404, "NoSuchBucket"), Fault::Gone(_)));
        assert!(matches!(fault(404, "NoSuchUpload"), Fault::Unavailable(_)));
        assert!(matches!(fault(403, "SignatureDoesNotMatch"), Fault::Denied(_)));
        assert!(matches!(fault(403, "QuotaExceeded"), Fault::Full(_)));
        assert!(matches!(fault(400, "ExpiredToken"), Fault::Denied(_)));
        assert!(matches!(fault(503, "SlowDown"), Fault::Throttled(_)));
        assert!(matches!(fault(503, ""), Fault::Unavailable(_)));
        assert!(matches!(fault(409, "ConditionalRequestConflict"), Fault::Unavailable(_)));
        assert!(matches!(fault(400, "AuthorizationHeaderMalformed"), Fault::Misconfigured(_)));
        assert!(matches!(fault(400, "RequestTimeout"), Fault::Interrupted(_)));
        assert!(matches!(fault(400, "InvalidArgument"), Fault::Rejected(_)));
    }
}
