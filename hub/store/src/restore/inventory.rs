//! What every source holds of one database.

use super::source::{DynSource, SourceName};
use crate::destinations::{DestinationError, Listed};
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use walhub_common::DatabaseKey;

/// The files one source holds.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Which source.
    pub source: SourceName,
    /// Its files, in any order.
    pub files: Vec<Listed>,
}

/// The files all sources hold, most preferred source first. Sources that did not answer are named, not hidden: what
/// they hold may be missing from a plan.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Those that answered.
    pub listings: Vec<Listing>,
    /// Those that did not, and why.
    pub unanswered: Vec<DestinationError>,
}

impl Inventory {
    /// Asks all `sources` (most preferred first) at once.
    pub async fn list(
        sources: &[DynSource],
        database: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Inventory {
        let answers = join_all(sources.iter().map(|source| source.list(database, cancel))).await;
        let mut inventory = Inventory::default();
        for (source, answer) in sources.iter().zip(answers) {
            match answer {
                Ok(files) => inventory.listings.push(Listing { source: source.name().clone(), files }),
                Err(error) => inventory.unanswered.push(error),
            }
        }
        inventory
    }
}
