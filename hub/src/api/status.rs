//! Every error of the hub as a gRPC status: the only place that makes one.

use crate::fleet::labels::LabelError;
use crate::ingest::SessionError;
use crate::jobs::{JobError, PlanFault};
use crate::reload::ReloadError;
use crate::restore::{ChecksumsError, FoldError, PrepareError, UnknownSource};
use crate::staging::StagingError;
use std::fmt::Display;
use tonic::{Code, Status};
use walhub_common::AgentName;
use walhub_common::backoff::Class;
use walhub_common::tls::Identity;
use walhub_store::destinations::{DestinationError, Fault};
use walhub_store::restore::{PagesError, PlanError, RestoreError};

/// The connection did not come through our own listener.
pub(super) fn no_identity() -> Status {
    Status::unauthenticated("the connection has no client certificate")
}

/// Somebody else than an agent wants to replicate.
pub(super) fn only_agents(identity: &Identity) -> Status {
    Status::permission_denied(format!(
        "{identity} may not replicate: that takes the certificate of an agent (`hubctl cert issue --agent NAME`)"
    ))
}

/// Somebody else than an operator wants to change something.
pub(super) fn only_operators(identity: &Identity) -> Status {
    Status::permission_denied(format!(
        "{identity} may not do that: it takes the certificate of an operator (`hubctl cert issue --operator NAME`)"
    ))
}

/// An agent asks for what is another's.
pub(super) fn foreign(identity: &Identity, agent: &AgentName) -> Status {
    Status::permission_denied(format!("{identity} may not see databases of agent {agent}"))
}

/// A field of a request breaks the contract.
pub(super) fn invalid(field: &str, reason: impl Display) -> Status {
    Status::invalid_argument(format!("{field}: {reason}"))
}

/// A message that could not be read.
pub(super) fn broken(status: &Status) -> SessionError {
    if status.code() == Code::OutOfRange {
        return SessionError::Oversized;
    }
    SessionError::Broken(status.message().to_owned())
}

/// Why a replication stream ended.
pub(super) fn session(error: &SessionError) -> Status {
    let code = match error {
        SessionError::BadHello(_) | SessionError::BadMessage(_) => Code::InvalidArgument,
        SessionError::Oversized => Code::ResourceExhausted,
        SessionError::Stale(_) => Code::FailedPrecondition,
        SessionError::Replaced => Code::Aborted,
        SessionError::Epochs(_)
        | SessionError::Shutdown
        | SessionError::Buffer(_)
        | SessionError::Broken(_) => Code::Unavailable,
        SessionError::Internal(_) => Code::Internal,
    };
    Status::new(code, error.to_string())
}

/// Why the configuration was not reloaded.
pub(super) fn reload(error: &ReloadError) -> Status {
    match error {
        ReloadError::Faults(_) | ReloadError::Destination(_) | ReloadError::Scratch { .. } => {
            Status::failed_precondition(error.to_string())
        }
        ReloadError::Ended(_) => Status::unavailable(error.to_string()),
    }
}

/// Why a label was not given.
pub(super) fn label(error: &LabelError) -> Status {
    match error {
        LabelError::Word(_) => Status::invalid_argument(error.to_string()),
        LabelError::TooMany => Status::resource_exhausted(error.to_string()),
        LabelError::Io(_) => Status::unavailable(error.to_string()),
    }
}

/// Why there is no plan of a job.
pub(super) fn plan(error: &PlanFault) -> Status {
    match error {
        PlanFault::Nothing => Status::not_found(error.to_string()),
        _ => Status::invalid_argument(error.to_string()),
    }
}

/// Why a job was not begun or changed.
pub(super) fn job(error: &JobError) -> Status {
    match error {
        JobError::Unknown(_) | JobError::None => Status::not_found(error.to_string()),
        JobError::Busy { .. } | JobError::Nothing(_) | JobError::Refused(_) => {
            Status::failed_precondition(error.to_string())
        }
        JobError::TooMany => Status::resource_exhausted(error.to_string()),
        JobError::Io(_) | JobError::Ended => Status::unavailable(error.to_string()),
    }
}

/// A source that is not configured.
pub(super) fn unknown_source(error: &UnknownSource) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Why a restore cannot start.
pub(super) fn prepare(error: &PrepareError) -> Status {
    match error {
        PrepareError::Restore(error) => restore(error),
        PrepareError::Short { unanswered, .. } if unanswered.is_empty() => {
            Status::data_loss(error.to_string())
        }
        PrepareError::Short { .. } => Status::unavailable(error.to_string()),
    }
}

/// Why there are no page checksums.
pub(super) fn checksums(error: &ChecksumsError) -> Status {
    match error {
        ChecksumsError::Prepare(error) => prepare(error),
        ChecksumsError::Source(error) => source(error),
        ChecksumsError::Fold { error: FoldError::Elsewhere { .. }, .. } => {
            Status::failed_precondition(error.to_string())
        }
        ChecksumsError::Fold { .. } => Status::data_loss(error.to_string()),
        ChecksumsError::NothingNew(_) => Status::invalid_argument(error.to_string()),
        ChecksumsError::TooMany(_) => Status::resource_exhausted(error.to_string()),
        ChecksumsError::Internal(_) => Status::internal(error.to_string()),
    }
}

/// Why pages broke off.
pub(super) fn pages(error: &PagesError) -> Status {
    match error {
        PagesError::Source { error: cause, .. } => Status::new(source(cause).code(), error.to_string()),
        PagesError::MissingPage(_) | PagesError::Nothing => Status::data_loss(error.to_string()),
        PagesError::Internal => Status::internal(error.to_string()),
    }
}

/// Why parts of a first snapshot cannot be told.
pub(super) fn staging(error: &StagingError) -> Status {
    match error {
        StagingError::Sealing => Status::unavailable(error.to_string()),
        _ => Status::internal(error.to_string()),
    }
}

/// Why no chain of files leads there.
pub(super) fn restore(error: &RestoreError) -> Status {
    match error {
        RestoreError::Source(error) => source(error),
        RestoreError::Plan { error: plan, unanswered, .. } => {
            let code = match plan {
                // What is missing may lie where nobody answered.
                _ if !unanswered.is_empty() => Code::Unavailable,
                PlanError::NotFound => Code::NotFound,
                PlanError::Hole { .. } => Code::DataLoss,
                PlanError::BetweenRestorePoints { .. }
                | PlanError::BeyondNewest { .. }
                | PlanError::BeforeStart { .. }
                | PlanError::BeforeOldest { .. } => Code::OutOfRange,
            };
            Status::new(code, error.to_string())
        }
    }
}

/// Why a source failed.
pub(super) fn source(error: &DestinationError) -> Status {
    let code = match (&error.fault, error.class()) {
        (Fault::Corrupt(_), _) => Code::DataLoss,
        (_, Class::Transient | Class::Throttled | Class::Unknown) => Code::Unavailable,
        (_, Class::Cancelled) => Code::Cancelled,
        (_, Class::Permanent) => Code::FailedPrecondition,
    };
    Status::new(code, error.to_string())
}
