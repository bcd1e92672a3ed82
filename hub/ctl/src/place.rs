//! Folders and buckets that are read without a hub, by their address.

use crate::fault::Usage;
use anyhow::Context;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, DestinationName};
use walhub_store::destinations::object::ObjectPath;
use walhub_store::destinations::{DynDestination, url};
use walhub_store::pack::PackedDestination;
use walhub_store::restore::{DestinationSource, DynSource, LitestreamSource};

/// Stands for the only database of a place that Litestream wrote.
const ONLY: &str = "-/-";

/// Places that hold the same databases.
#[derive(Debug)]
pub(crate) struct Places(Vec<DynDestination>);

impl Places {
    /// Opens the places at `urls`, most preferred first. Asks each of them once, whether it keeps files in packs.
    pub(crate) async fn open(urls: &[String], cancel: &CancellationToken) -> anyhow::Result<Places> {
        let mut places: Vec<DynDestination> = Vec::new();
        for address in urls {
            let config = url::parse(address).map_err(Usage)?;
            let kind = config.kind();
            let same = places.iter().filter(|place| place.kind() == kind).count();
            let name = if same == 0 { kind.to_owned() } else { format!("{kind}-{}", same + 1) };
            let name = DestinationName::new(name).context("an address gives no name")?;
            let place = config.build(name).await?;
            let packs = ObjectPath::new("walhub/packs")?;
            let packed = !place.list_objects(&packs, None, cancel).await?.is_empty();
            places.push(if packed { Arc::new(PackedDestination::new(place)) } else { place });
        }
        Ok(Places(places))
    }

    /// The databases in all of them, sorted.
    pub(crate) async fn databases(&self, cancel: &CancellationToken) -> anyhow::Result<Vec<DatabaseKey>> {
        let mut all = Vec::new();
        for place in &self.0 {
            all.extend(place.list_databases(cancel).await?);
        }
        all.sort();
        all.dedup();
        Ok(all)
    }

    /// The places as sources of a database, and its key there. `None`: the places are the database's own folder, as
    /// Litestream writes it.
    pub(crate) fn sources(&self, database: Option<&DatabaseKey>) -> (Vec<DynSource>, DatabaseKey) {
        let source = |place: &DynDestination| -> DynSource {
            match database {
                Some(_) => Arc::new(DestinationSource(place.clone())),
                None => Arc::new(LitestreamSource::new(place.clone())),
            }
        };
        let key = database.cloned().unwrap_or_else(|| ONLY.parse().expect("BUG: a legal key"));
        (self.0.iter().map(source).collect(), key)
    }

    /// Where they are, for people.
    pub(crate) fn location(&self) -> String {
        self.0.iter().map(|place| place.location()).collect::<Vec<_>>().join(" and ")
    }
}
