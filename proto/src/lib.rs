//! The contracts between agent, hub and hubctl, generated from `hub/v1/*.proto`, and the only place where wire values
//! become typed ones ([`convert`]; [`pages`], [`delta`] and [`restore`] for clients that fetch pages).

/// Generated messages and services of `package hub.v1`.
#[allow(clippy::all, unreachable_pub, missing_docs)]
pub mod v1 {
    tonic::include_proto!("hub.v1");
}

pub mod convert;
pub mod delta;
pub mod pages;
pub mod restore;

/// Messages ⇄ bytes, for those that are kept and not sent.
pub use prost::Message;
