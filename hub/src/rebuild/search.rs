//! Which mirror a hub is rebuilt from.

use crate::mirror::HubId;
use crate::mirror::shelf::{self, Found, ShelfError};
use std::collections::{BTreeMap, BTreeSet};
use tokio_util::sync::CancellationToken;
use walhub_common::clock;
use walhub_store::destinations::{DestinationError, DynDestination};

/// Hubs whose mirrors are read when none was named.
const MAX_HUBS: usize = 64;

/// The mirror, and who did not answer while it was looked for.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) found: Found,
    pub(super) unanswered: Vec<String>,
}

/// Why there is no mirror to go by.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The destination failed.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// None can be read.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// No hub is mirrored there.
    #[error(
        "no hub is mirrored at {0}; without a mirror start the hub with an empty data folder: its agents bring back what \
         they follow, but holds, and databases whose agents are gone, are known to no one"
    )]
    Empty(String),
    /// Not the one that was named.
    #[error("hub {hub} is not mirrored there; these are: {others}")]
    Unknown {
        /// The one.
        hub: HubId,
        /// The others.
        others: String,
    },
    /// Several.
    #[error("several hubs are mirrored there; say with --hub which one was lost:{}", .0.iter().map(|one| format!("\n  {one}")).collect::<String>())]
    Several(Vec<String>),
    /// Its place was taken.
    #[error(
        "hub {hub} was rebuilt before, as hub {successor}: go by that one (--hub {successor}), or name this one with --hub"
    )]
    Succeeded {
        /// The old one.
        hub: HubId,
        /// The one in its place.
        successor: HubId,
    },
    /// Another destination knows more.
    #[error(
        "{destination} has a newer mirror of hub {hub} ({theirs}) than {from} ({ours}): use --from {destination}"
    )]
    Older {
        /// Who has it.
        destination: String,
        /// Of which hub.
        hub: HubId,
        /// When that was made.
        theirs: String,
        /// Where it was to come from.
        from: String,
        /// When this was made.
        ours: String,
    },
}

/// Chooses among the mirrors at `from`. `others` are only asked whether they know of a newer one, or of a hub that came in
/// its place; one that does not answer holds nothing up.
pub(super) async fn choose(
    from: &DynDestination,
    others: &[DynDestination],
    hub: Option<&HubId>,
    cancel: &CancellationToken,
) -> Result<Chosen, SearchError> {
    let listed = shelf::list(from, cancel).await?;
    if listed.is_empty() {
        return Err(SearchError::Empty(from.location()));
    }
    let found = match hub {
        Some(hub) => match listed.get(hub) {
            Some(numbers) => shelf::newest(from, hub, numbers, cancel).await?,
            None => return Err(SearchError::Unknown { hub: hub.clone(), others: names(listed.keys()) }),
        },
        None => the_only(from, &listed, cancel).await?,
    };
    let mut unanswered = Vec::new();
    for other in others {
        match newer(other, &found, hub.is_none(), cancel).await {
            Ok(None) => {}
            Ok(Some(Newer::Successor(successor))) => {
                return Err(SearchError::Succeeded { hub: found.state.id, successor });
            }
            Ok(Some(Newer::Mirror(written_ms))) => {
                return Err(SearchError::Older {
                    destination: other.name().to_string(),
                    hub: found.state.id,
                    theirs: time(written_ms),
                    from: from.name().to_string(),
                    ours: time(found.state.written_ms),
                });
            }
            Err(error @ (SearchError::Destination(_) | SearchError::Shelf(ShelfError::Destination(_)))) => {
                unanswered.push(format!("{}: {error}", other.name()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Chosen { found, unanswered })
}

fn names<'a>(hubs: impl Iterator<Item = &'a HubId>) -> String {
    hubs.map(HubId::as_str).collect::<Vec<_>>().join(", ")
}

fn time(ms: i64) -> String {
    clock::format_ms(ms)
}

/// The one hub that nobody came in the place of.
async fn the_only(
    from: &DynDestination,
    listed: &BTreeMap<HubId, Vec<u64>>,
    cancel: &CancellationToken,
) -> Result<Found, SearchError> {
    if listed.len() > MAX_HUBS {
        return Err(SearchError::Several(listed.keys().map(HubId::to_string).collect()));
    }
    let (mut good, mut bad, mut succeeded) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (hub, numbers) in listed {
        match shelf::newest(from, hub, numbers, cancel).await {
            Ok(found) => {
                succeeded.extend(found.state.predecessor.clone());
                good.push(found);
            }
            Err(ShelfError::Destination(error)) => return Err(error.into()),
            Err(error) => bad.push((hub, error)),
        }
    }
    good.retain(|found| !succeeded.contains(&found.state.id));
    bad.retain(|(hub, _)| !succeeded.contains(*hub));
    if good.len() + bad.len() > 1 {
        let known = |found: &Found| {
            let state = &found.state;
            let agents: BTreeSet<&str> =
                state.databases.iter().map(|database| database.key.agent.as_str()).collect();
            let some = agents.iter().take(3).copied().collect::<Vec<_>>().join(", ");
            let more = if agents.len() > 3 { ", …" } else { "" };
            let (at, databases) = (time(state.written_ms), state.databases.len());
            format!("{}, mirrored {at}: {databases} databases of {some}{more}", state.id)
        };
        let unknown = |(hub, error): &(&HubId, ShelfError)| format!("{hub}: {error}");
        return Err(SearchError::Several(good.iter().map(known).chain(bad.iter().map(unknown)).collect()));
    }
    match (good.pop(), bad.pop()) {
        (Some(found), _) => Ok(found),
        (None, Some((_, error))) => Err(error.into()),
        // Each names another one as its predecessor: no hub writes that.
        (None, None) => Err(SearchError::Several(listed.keys().map(HubId::to_string).collect())),
    }
}

enum Newer {
    Mirror(i64),
    Successor(HubId),
}

/// What `other` knows beyond the mirror that was found; successors when `successors`.
async fn newer(
    other: &DynDestination,
    found: &Found,
    successors: bool,
    cancel: &CancellationToken,
) -> Result<Option<Newer>, SearchError> {
    let listed = shelf::list(other, cancel).await?;
    for (hub, numbers) in listed.iter().take(MAX_HUBS) {
        let same = *hub == found.state.id;
        let newer = numbers.iter().any(|seq| *seq > found.state.seq);
        if (same && !newer) || (!same && !successors) {
            continue;
        }
        match shelf::newest(other, hub, numbers, cancel).await {
            Ok(theirs) if same && theirs.state.seq > found.state.seq => {
                return Ok(Some(Newer::Mirror(theirs.state.written_ms)));
            }
            Ok(theirs) if theirs.state.predecessor.as_ref() == Some(&found.state.id) => {
                return Ok(Some(Newer::Successor(theirs.state.id)));
            }
            // What cannot be read there is no reason to leave what can be read here, unless a newer hub wrote it.
            Ok(_) | Err(ShelfError::None { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}
