//! `policy:`, of all databases or of some, and whether it can ever be met.

use super::DestinationEntry;
use crate::copies::Policy;
use walhub_common::config::{Section, value};

/// Reads a policy; what it does not say is as in [`Policy::default`]. A fault when `destinations` (if they are known)
/// can never satisfy it.
pub(super) fn parse(mut section: Section<'_>, destinations: Option<&[DestinationEntry]>) -> Policy {
    let default = Policy::default();
    let count = value::int_in(0..=100u32);
    let policy = Policy {
        copies: section.or("copies", default.copies, &count),
        media: section.or("media", default.media, &count),
        offsite: section.or("offsite", default.offsite, &count),
        immutable: section.or("immutable", default.immutable, &count),
    };
    if let Some(reason) = destinations.and_then(|destinations| never(policy, destinations)) {
        section.fault(format!("can never be met: {reason}; add a destination or ask for less"));
    }
    section.finish();
    policy
}

/// Why these destinations can never satisfy a policy.
pub(super) fn never<'a>(
    policy: Policy,
    destinations: impl IntoIterator<Item = &'a DestinationEntry>,
) -> Option<String> {
    policy.unsatisfiable(destinations.into_iter().map(|destination| &destination.site))
}
