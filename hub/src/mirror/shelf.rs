//! Where mirrors lie at a destination, and which of them is the newest good one.

use super::format::{self, FormatError};
use super::state::{HubId, HubState};
use std::collections::BTreeMap;
use tokio_util::sync::CancellationToken;
use walhub_store::destinations::object::{ObjectPath, collect};
use walhub_store::destinations::{DestinationError, DynDestination, Fault};

/// Folder of all hubs.
const FOLDER: &str = "walhub/hub";
/// Begin of a mirror's name.
const PREFIX: &str = "mirror-";
/// Most objects that are looked at in the folder: many more than any number of hubs leaves there.
const MAX_OBJECTS: usize = 100_000;

/// Where mirror `seq` of a hub lies.
pub fn path(hub: &HubId, seq: u64) -> ObjectPath {
    folder().join(&format!("{hub}/{PREFIX}{seq:016x}")).expect("BUG: a good path")
}

fn folder() -> ObjectPath {
    ObjectPath::new(FOLDER).expect("BUG: a good path")
}

/// Hub and number of a mirror; `None` for any other object.
fn parse(object: &ObjectPath) -> Option<(HubId, u64)> {
    let (hub, name) = object.below(&folder())?.split_once('/')?;
    let hub = HubId::new(hub)?;
    let seq = u64::from_str_radix(name.strip_prefix(PREFIX)?, 16).ok()?;
    (*object == path(&hub, seq)).then_some((hub, seq))
}

/// All mirrors at a destination: hubs, and their numbers in ascending order. One request for a thousand.
pub async fn list(
    destination: &DynDestination,
    cancel: &CancellationToken,
) -> Result<BTreeMap<HubId, Vec<u64>>, DestinationError> {
    let (mut found, mut after, mut objects) = (BTreeMap::<HubId, Vec<u64>>::new(), None, 0);
    while objects < MAX_OBJECTS {
        let page = destination.list_objects(&folder(), after.as_ref(), cancel).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.path.clone());
        objects += page.len();
        for (hub, seq) in page.iter().filter_map(|object| parse(&object.path)) {
            found.entry(hub).or_default().push(seq);
        }
    }
    Ok(found)
}

/// A mirror that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unusable {
    /// Its path.
    pub object: String,
    /// Why.
    pub reason: String,
}

/// The newest good mirror of one hub.
#[derive(Debug)]
pub struct Found {
    /// Its content.
    pub state: HubState,
    /// Newer ones, that are damaged.
    pub passed_over: Vec<Unusable>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// The destination failed.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// A newer hub wrote the newest one: an older one of an older version would be a guess.
    #[error("{object}: {error}")]
    Newer {
        /// Its path.
        object: String,
        /// What it says.
        error: FormatError,
    },
    /// All are damaged.
    #[error("no mirror of hub {hub} can be used: {}", list_of(unusable))]
    None {
        /// Whose.
        hub: HubId,
        /// Each one.
        unusable: Vec<Unusable>,
    },
}

fn list_of(unusable: &[Unusable]) -> String {
    let each = unusable.iter().map(|one| format!("{}: {}", one.object, one.reason));
    each.collect::<Vec<_>>().join("; ")
}

/// Reads the mirrors of a hub, newest first, until one is good. `numbers` are those of [`list`].
pub async fn newest(
    destination: &DynDestination,
    hub: &HubId,
    numbers: &[u64],
    cancel: &CancellationToken,
) -> Result<Found, ShelfError> {
    let mut passed_over = Vec::new();
    for seq in numbers.iter().rev() {
        let object = path(hub, *seq);
        let read = async {
            let stream = destination.open_object(&object, 0..u64::MAX, cancel).await?;
            collect(stream, format::MAX_BYTES + 1).await
        };
        let reason = match read.await {
            Ok(bytes) => match judge(hub, *seq, &bytes) {
                Ok(state) => return Ok(Found { state, passed_over }),
                Err(FormatError::Damaged(reason)) => reason,
                Err(error @ FormatError::Newer { .. }) => {
                    return Err(ShelfError::Newer { object: object.to_string(), error });
                }
            },
            // It was listed, and went since; or its bytes are not what the destination stored.
            Err(error) if matches!(error.fault, Fault::NotFound | Fault::Corrupt(_)) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        tracing::error!(%object, destination = %destination.name(), %reason, "a mirror of a hub is damaged");
        passed_over.push(Unusable { object: object.to_string(), reason });
    }
    Err(ShelfError::None { hub: hub.clone(), unusable: passed_over })
}

fn judge(hub: &HubId, seq: u64, bytes: &[u8]) -> Result<HubState, FormatError> {
    let state = HubState::from_wire(format::open(bytes)?).map_err(|e| FormatError::Damaged(e.to_string()))?;
    if state.id == *hub && state.seq == seq {
        return Ok(state);
    }
    Err(FormatError::Damaged(format!("it is mirror {} of hub {}, under another name", state.seq, state.id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_name_of_a_mirror_is_one() {
        let hub = HubId::new(&"0a".repeat(16)).unwrap();
        let text = "walhub/hub/0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a/mirror-00000000000000ff";
        assert_eq!(path(&hub, 255).as_str(), text);
        assert_eq!(parse(&path(&hub, u64::MAX)), Some((hub.clone(), u64::MAX)));
        for other in [
            "walhub/hub/mirror-00000000000000ff",
            "walhub/hub/0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A/mirror-00000000000000ff",
            "walhub/hub/0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a/mirror-ff",
            "walhub/hub/0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a/mirror-00000000000000FF",
            "walhub/hub/0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a/x/mirror-00000000000000ff",
            "walhub/hubs/0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a/mirror-00000000000000ff",
        ] {
            assert_eq!(parse(&ObjectPath::new(other).unwrap()), None, "{other}");
        }
    }
}
