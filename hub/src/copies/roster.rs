//! Which destinations are in service, which databases each of them serves, and by which policy: one immutable value. A
//! reload replaces it as a whole; whoever works with it takes it anew for each piece of work.

use super::policy::Site;
use super::rules::{Rules, Selector};
use crate::config::DestinationEntry;
use std::sync::Arc;
use std::time::Duration;
use walhub_common::{DatabaseKey, DestinationName, Txid};
use walhub_store::destinations::DynDestination;

/// Number of a lane. It stays with a destination through renames and changes, and is never used for another one.
pub type LaneId = usize;

/// A destination in service.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its lane.
    pub lane: LaneId,
    /// As configured.
    pub entry: DestinationEntry,
    /// The destination, with everything that wraps it.
    pub destination: DynDestination,
}

impl Place {
    /// Its name in the configuration.
    pub fn name(&self) -> &DestinationName {
        &self.entry.name
    }
}

/// What a selector means for its databases, with the destinations of now.
#[derive(Debug)]
pub struct Terms {
    /// The selector.
    pub selector: Selector,
    /// Destinations that serve its databases, in the order of the configuration; never empty.
    pub places: Vec<Arc<Place>>,
    sites: Vec<Site>,
    cursors: Arc<[DestinationName]>,
}

impl Terms {
    fn new(selector: &Selector, all: &[Arc<Place>]) -> Self {
        let chosen = all.iter().filter(|place| selector.chooses(place.name()));
        let places: Vec<Arc<Place>> = chosen.cloned().collect();
        let sites = places.iter().map(|place| place.entry.site.clone()).collect();
        let cursors = places.iter().map(|place| place.entry.cursor.clone()).collect();
        Self { selector: selector.clone(), places, sites, cursors }
    }

    /// True when the destination of `lane` serves its databases.
    pub fn serves(&self, lane: LaneId) -> bool {
        self.places.iter().any(|place| place.lane == lane)
    }

    /// Least time between two flushes of its databases to `place`.
    pub fn sync_interval(&self, place: &Place) -> Duration {
        self.selector.sync_interval.unwrap_or(place.entry.sync_interval)
    }

    /// Names of the cursors that must have passed what is given back.
    pub fn cursors(&self) -> Arc<[DestinationName]> {
        self.cursors.clone()
    }

    /// Newest transaction that satisfies the policy, given what each destination holds.
    pub fn durable(&self, held: impl Fn(LaneId) -> Option<Txid>) -> Option<Txid> {
        self.selector.policy.durable(&self.sites, &self.held(held))
    }

    /// What is missing for `txid` to be durable, for people; empty when nothing is.
    pub fn missing(&self, held: impl Fn(LaneId) -> Option<Txid>, txid: Txid) -> String {
        self.selector.policy.missing(&self.sites, &self.held(held), txid)
    }

    fn held(&self, held: impl Fn(LaneId) -> Option<Txid>) -> Vec<Option<Txid>> {
        self.places.iter().map(|place| held(place.lane)).collect()
    }
}

/// See the module doc.
#[derive(Debug)]
pub struct Roster {
    places: Vec<Arc<Place>>,
    rules: Rules,
    terms: Vec<Arc<Terms>>,
}

impl Roster {
    /// These destinations, in the order of the configuration, under these rules.
    pub fn new(places: Vec<Arc<Place>>, rules: Rules) -> Self {
        let terms = rules.selectors().iter().map(|selector| Arc::new(Terms::new(selector, &places)));
        Self { terms: terms.collect(), places, rules }
    }

    /// All destinations, in the order of the configuration.
    pub fn places(&self) -> &[Arc<Place>] {
        &self.places
    }

    /// All destinations, for whoever reads from them.
    pub fn destinations(&self) -> Vec<DynDestination> {
        self.places.iter().map(|place| place.destination.clone()).collect()
    }

    /// The destination of a lane, while it is in service.
    pub fn place(&self, lane: LaneId) -> Option<&Arc<Place>> {
        self.places.iter().find(|place| place.lane == lane)
    }

    /// What applies to a database.
    pub fn terms(&self, database: &DatabaseKey) -> &Arc<Terms> {
        &self.terms[self.rules.of(database)]
    }

    /// What applies to any database.
    pub fn all_terms(&self) -> &[Arc<Terms>] {
        &self.terms
    }
}

/// The destinations of the moment, for parts of the hub that read from all of them.
#[derive(Clone)]
pub struct InService(Arc<dyn Fn() -> Vec<DynDestination> + Send + Sync>);

impl InService {
    /// As `all` says whenever it is asked.
    pub fn new(all: impl Fn() -> Vec<DynDestination> + Send + Sync + 'static) -> Self {
        Self(Arc::new(all))
    }

    /// Always these.
    pub fn fixed(destinations: &[DynDestination]) -> Self {
        let all = destinations.to_vec();
        Self::new(move || all.clone())
    }

    /// All of them, in the order of the configuration.
    pub fn all(&self) -> Vec<DynDestination> {
        (self.0)()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }
}
