//! The contracts between agent, hub and hubctl, generated from `hub/v1/*.proto`, and the only place where wire values
//! become typed ones ([`convert`]; [`pages`] and [`delta`] for clients that fetch what differs).

/// Generated messages and services of `package hub.v1`.
#[allow(clippy::all, unreachable_pub, missing_docs)]
pub mod v1 {
    tonic::include_proto!("hub.v1");
}

pub mod convert;
pub mod delta;
pub mod pages;

/// Messages ⇄ bytes, for those that are kept and not sent.
pub use prost::Message;
