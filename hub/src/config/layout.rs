//! `layout:` of a destination: how its files lie there.

use std::sync::Arc;
use walhub_common::config::{Section, value};
use walhub_store::destinations::DynDestination;
use walhub_store::pack::PackedDestination;

/// How new transactions are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Layout {
    /// One file per database and flush, as Litestream has it.
    #[default]
    Litestream,
    /// One object per flush with the files of all databases.
    Packed,
}

pub(super) fn parse(item: &mut Section<'_>) -> Layout {
    let layouts = [("litestream", Layout::Litestream), ("packed", Layout::Packed)];
    item.or("layout", Layout::default(), value::one_of(&layouts))
}

impl Layout {
    /// The destination as everybody works with it.
    pub fn over(self, destination: DynDestination) -> DynDestination {
        match self {
            Layout::Litestream => destination,
            Layout::Packed => Arc::new(PackedDestination::new(destination)),
        }
    }
}
