//! A set of files that may stay ▸ the same with whatever is needed to reach them. Pure.

use std::cmp::Reverse;
use std::collections::BTreeSet;

/// A file as an edge: from every state `c` with `min - 1 <= c < max` to `max`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    pub(super) min: u64,
    pub(super) max: u64,
}

/// Which of `edges` can be reached from nothing.
pub(super) fn reachable(edges: &[Edge]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..edges.len()).collect();
    order.sort_by_key(|&at| edges[at].max);
    let mut states: Vec<u64> = vec![0];
    let mut found = vec![false; edges.len()];
    for group in order.chunk_by(|&a, &b| edges[a].max == edges[b].max) {
        let end = edges[group[0]].max;
        let before = states.len();
        for &at in group {
            // All states in the list lie before this group's end.
            found[at] = states[before - 1] >= edges[at].min - 1;
        }
        if group.iter().any(|&at| found[at]) {
            states.push(end);
        }
    }
    found
}

/// Adds to `kept` what its files need, until every state that one of them ends with is reachable within `kept` if it is
/// within `edges` (of which `reachable` can be reached), by this file or another. The places that were added.
pub(super) fn close(edges: &[Edge], reachable: &[bool], kept: &[bool]) -> Vec<usize> {
    // By end, and of one end those that begin first last: they need the fewest others.
    let mut order: Vec<usize> = (0..edges.len()).filter(|&at| reachable[at]).collect();
    order.sort_by_key(|&at| (edges[at].max, Reverse(edges[at].min)));
    let mut ends: BTreeSet<u64> = order.iter().filter(|&&at| kept[at]).map(|&at| edges[at].max).collect();
    let mut wanted: Vec<bool> = kept.to_vec();
    let mut added = Vec::new();
    // Nothing leads to the file itself, but others end as it does: that of them which needs the fewest.
    for lone in (0..edges.len()).filter(|&at| kept[at] && !reachable[at]) {
        let end = edges[lone].max;
        let after = order.partition_point(|&at| edges[at].max <= end);
        let others = after.checked_sub(1).map(|last| order[last]).filter(|&at| edges[at].max == end);
        if let Some(at) = others
            && ends.insert(end)
        {
            wanted[at] = true;
            added.push(at);
        }
    }
    let mut after = order.len();
    while let Some(last) = after.checked_sub(1) {
        let end = edges[order[last]].max;
        let first = order.partition_point(|&at| edges[at].max < end);
        after = first;
        // Of the files with this end, the one that begins first is reachable if any is.
        let Some(&at) = order[first..=last].iter().rev().find(|&&at| wanted[at]) else { continue };
        let edge = edges[at];
        if edge.min == 1 || ends.range(edge.min - 1..end).next().is_some() {
            continue;
        }
        // It is reachable, so a file that ends in time is there: the nearest end is one if any is.
        let Some(needed) = first.checked_sub(1).map(|before| order[before]) else { continue };
        wanted[needed] = true;
        ends.insert(edges[needed].max);
        added.push(needed);
    }
    added
}
