//! `databases:`: what applies to some of them only.

use super::{DestinationEntry, policy};
use crate::config::destination::SYNC_INTERVAL;
use crate::copies::{Policy, Selector};
use glob::Pattern;
use std::ops::RangeInclusive;
use std::time::Duration;
use walhub_common::DestinationName;
use walhub_common::config::{Section, did_you_mean, value};

/// More would slow every look-up, and nobody could read them.
const MAX_SELECTORS: usize = 1000;
const RETENTION: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(100 * 365 * 86_400);

/// Reads all entries. `destinations` is `None` when they have faults of their own: then nothing is concluded from them.
pub(super) fn parse(
    root: &mut Section<'_>,
    policy: Policy,
    destinations: Option<&[DestinationEntry]>,
) -> Vec<Selector> {
    let items = root.sections("databases");
    if items.len() > MAX_SELECTORS {
        root.fault_at("databases", format!("has {} entries; {MAX_SELECTORS} are the most", items.len()));
    }
    items.into_iter().filter_map(|item| entry(item, policy, destinations)).collect()
}

fn entry(
    mut item: Section<'_>,
    of_all: Policy,
    destinations: Option<&[DestinationEntry]>,
) -> Option<Selector> {
    let patterns: Vec<Option<Pattern>> = item.one_or_list("match", pattern);
    if patterns.is_empty() {
        item.fault_at("match", "is missing; write a pattern over AGENT/NAME, such as `match: pos-*/app.db`");
    }
    let named = item.has("destinations");
    let names = item.one_or_list("destinations", |text| known(text, destinations));
    if named && names.is_empty() {
        item.fault_at(
            "destinations",
            "names none: its databases would have no copy; leave it out for all of them",
        );
    }
    let chosen: Option<Vec<DestinationName>> = names.into_iter().collect();
    let judged = destinations.filter(|_| chosen.as_ref().is_some_and(|chosen| !named || !chosen.is_empty()));
    let chosen = chosen.filter(|_| named);
    let sync_interval = item.optional("sync-interval", value::duration_in(SYNC_INTERVAL));
    let retention = item.optional("retention", value::duration_in(RETENTION));
    let own = item.optional_section("policy");
    let patterns = patterns.into_iter().flatten().collect();
    let mut selector = Selector { patterns, destinations: chosen, sync_interval, policy: of_all, retention };
    // Names that mean nothing are faults already: then nothing is concluded from the others.
    let served: Option<Vec<DestinationEntry>> = judged
        .map(|all| all.iter().filter(|destination| selector.chooses(&destination.name)).cloned().collect());
    match own {
        Some(section) => selector.policy = policy::parse(section, served.as_deref()),
        None => {
            if let Some(reason) = served.and_then(|served| policy::never(of_all, &served)) {
                item.fault(format!(
                    "the policy of all databases can never be met here: {reason}; give it a `policy` of its own, or \
                     more destinations"
                ));
            }
        }
    }
    item.finish();
    Some(selector)
}

pub(super) fn pattern(text: &str) -> Result<Pattern, String> {
    let text = value::string(text)?;
    Pattern::new(&text)
        .map_err(|error| format!("{text:?} is not a pattern: {error}; `*` stands for any characters"))
}

fn known(text: &str, destinations: Option<&[DestinationEntry]>) -> Result<DestinationName, String> {
    let name: DestinationName = value::parsed(text)?;
    let Some(all) = destinations else { return Ok(name) };
    if all.iter().any(|destination| destination.name == name) {
        return Ok(name);
    }
    let hint = did_you_mean(text, all.iter().map(|destination| destination.name.as_str()));
    Err(format!("there is no destination called {name}{}", hint.unwrap_or_default()))
}
