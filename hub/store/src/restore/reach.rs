//! Which transactions can be restored from a set of files, and the cheapest chain to each of them. Pure.
//!
//! A file `min..=max` leads from every state `c` with `min - 1 <= c < max` to the state `max`; the empty state is 0. So
//! files are edges of a graph without cycles, and the cheapest chains to all states come from one pass over the files
//! by ascending `max`: n log n, however many sources and levels overlap.

use super::inventory::Listing;
use super::plan::{Plan, PlannedFile};
use walhub_common::Txid;

/// What one more file costs, in bytes: a request takes about as long as this many bytes of a transfer. Without it, ten
/// thousand tiny files would be preferred to one slightly larger.
pub const FILE_OVERHEAD_BYTES: u64 = 64 * 1024;

/// See the module doc.
#[derive(Debug)]
pub struct Reach<'a> {
    listings: &'a [Listing],
    /// The start, then every state that can be reached, ascending.
    nodes: Vec<Node>,
    /// All files that lead past the start, by (max, min).
    edges: Vec<Edge>,
}

/// Bytes with the overhead of each file; then how little the sources are preferred.
type Cost = (u64, u64);

#[derive(Debug, Clone, Copy)]
struct Node {
    state: u64,
    cost: Cost,
    /// The last file, and the node before it. The start has none.
    via: Option<(Edge, usize)>,
}

#[derive(Debug, Clone, Copy)]
struct Edge {
    min: u64,
    max: u64,
    listing: usize,
    file: usize,
}

/// Files that nothing leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hole {
    /// The newest transaction that can be reached; `None` when not even a first file is there.
    pub after: Option<Txid>,
    /// The oldest transaction behind the hole.
    pub next_available: Txid,
}

impl<'a> Reach<'a> {
    /// From the empty state, or from the state after the transaction `after`. Of listings that hold the same file, the
    /// first is preferred.
    pub fn new(listings: &'a [Listing], after: Option<Txid>) -> Reach<'a> {
        let start = after.map_or(0, Txid::get);
        let mut edges: Vec<Edge> = Vec::new();
        for (listing, of) in listings.iter().enumerate() {
            edges.extend(of.files.iter().enumerate().map(|(file, listed)| Edge {
                min: listed.range.min().get(),
                max: listed.range.max().get(),
                listing,
                file,
            }));
        }
        edges.retain(|edge| edge.max > start);
        edges.sort_unstable_by_key(|edge| (edge.max, edge.min, edge.listing));
        let mut reach =
            Reach { listings, nodes: vec![Node { state: start, cost: (0, 0), via: None }], edges };
        reach.search();
        reach
    }

    /// Walks the states in ascending order. `frontier` holds the nodes that may still start a cheapest step: of two
    /// nodes the later is never the dearer one in a useful step, so costs in it ascend strictly, and the first node
    /// that lies far enough is the cheapest that does.
    fn search(&mut self) {
        let mut frontier = vec![0_usize];
        for group in self.edges.chunk_by(|a, b| a.max == b.max) {
            let mut best: Option<Node> = None;
            for &edge in group {
                let first = frontier.partition_point(|&node| self.nodes[node].state < edge.min - 1);
                let Some(&from) = frontier.get(first) else { continue };
                let cost = self.step(self.nodes[from].cost, edge);
                if best.is_none_or(|best| cost < best.cost) {
                    best = Some(Node { state: edge.max, cost, via: Some((edge, from)) });
                }
            }
            let Some(node) = best else { continue };
            while frontier.last().is_some_and(|&last| self.nodes[last].cost >= node.cost) {
                frontier.pop();
            }
            frontier.push(self.nodes.len());
            self.nodes.push(node);
        }
    }

    fn step(&self, (bytes, dislike): Cost, edge: Edge) -> Cost {
        let size = self.listings[edge.listing].files[edge.file].size;
        (bytes.saturating_add(size).saturating_add(FILE_OVERHEAD_BYTES), dislike + edge.listing as u64)
    }

    fn file(&self, edge: Edge) -> PlannedFile {
        let listing = &self.listings[edge.listing];
        let listed = &listing.files[edge.file];
        PlannedFile {
            source: listing.source.clone(),
            level: listed.level,
            range: listed.range,
            size: listed.size,
            time_ms: listed.time_ms,
        }
    }

    /// Where the chains start: `None` is the empty state.
    pub fn start(&self) -> Option<Txid> {
        Txid::new(self.nodes[0].state)
    }

    /// True when there is not one file past the start.
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty()
    }

    /// Every transaction past the start that can be restored, ascending.
    pub fn points(&self) -> impl DoubleEndedIterator<Item = Txid> + ExactSizeIterator {
        self.nodes[1..]
            .iter()
            .map(|node| Txid::new(node.state).expect("BUG: a reached state is a transaction"))
    }

    /// The newest restorable transaction; the start when nothing leads past it.
    pub fn newest(&self) -> Option<Txid> {
        self.nodes.last().and_then(|node| Txid::new(node.state))
    }

    /// The newest transaction that any file mentions, whether it can be reached or not.
    pub fn newest_mentioned(&self) -> Option<Txid> {
        self.edges.last().and_then(|edge| Txid::new(edge.max))
    }

    /// The hole behind the newest restorable transaction, if files lie behind it.
    pub fn hole(&self) -> Option<Hole> {
        let newest = self.nodes.last().map_or(0, |node| node.state);
        let next = self.edges.iter().filter(|edge| edge.max > newest).map(|edge| edge.min).min()?;
        Some(Hole { after: Txid::new(newest), next_available: Txid::new(next)? })
    }

    /// Files that end with the transaction `txid`, of the most preferred source first.
    pub fn files_ending_at(&self, txid: Txid) -> Vec<PlannedFile> {
        let first = self.edges.partition_point(|edge| edge.max < txid.get());
        let mut edges: Vec<Edge> =
            self.edges[first..].iter().take_while(|edge| edge.max == txid.get()).copied().collect();
        edges.sort_by_key(|edge| edge.listing);
        edges.into_iter().map(|edge| self.file(edge)).collect()
    }

    /// The cheapest chain that ends exactly after `txid`; `None` when no chain does.
    pub fn chain_to(&self, txid: Txid) -> Option<Plan> {
        let mut node = self.nodes.binary_search_by_key(&txid.get(), |node| node.state).ok()?;
        let mut files = Vec::new();
        while let Some((edge, from)) = self.nodes[node].via {
            files.push(self.file(edge));
            node = from;
        }
        files.reverse();
        Some(Plan { files, reached: txid })
    }
}
