//! The 3-2-1 policy as arithmetic: how many copies, on how many kinds of storage, how many of them off-site.
//!
//! The live database counts as one copy, on the node's disk, at home. The hub's buffer does not count: it is the way to
//! the copies, not one of them. Everything here is pure.

use walhub_common::Txid;

/// Kind of storage the live database lies on, and the default of `file` destinations.
pub const LIVE_MEDIA: &str = "disk";

/// What must be true of a transaction before it is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Copies, the live database included.
    pub copies: u32,
    /// Kinds of storage among them.
    pub media: u32,
    /// Copies that are off-site.
    pub offsite: u32,
    /// Copies that nobody can change or delete for a time: on destinations with object lock.
    pub immutable: u32,
}

impl Default for Policy {
    /// One copy beside the live database.
    fn default() -> Self {
        Self { copies: 2, media: 1, offsite: 0, immutable: 0 }
    }
}

/// What the policy wants to know of a destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Site {
    /// Its name.
    pub name: String,
    /// Kind of storage.
    pub media: String,
    /// Away from the nodes and the hub.
    pub offsite: bool,
    /// Locked against change and deletion (object lock).
    pub immutable: bool,
}

/// What a set of copies amounts to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tally {
    copies: u32,
    media: u32,
    offsite: u32,
    immutable: u32,
}

fn tally<'a>(holders: impl Iterator<Item = &'a Site>) -> Tally {
    let mut kinds = vec![LIVE_MEDIA];
    let mut tally = Tally { copies: 1, media: 1, offsite: 0, immutable: 0 };
    for site in holders {
        tally.copies += 1;
        tally.offsite += u32::from(site.offsite);
        tally.immutable += u32::from(site.immutable);
        if !kinds.contains(&site.media.as_str()) {
            kinds.push(&site.media);
            tally.media += 1;
        }
    }
    tally
}

impl Policy {
    fn shortfall(self, have: Tally) -> Vec<String> {
        let mut missing = Vec::new();
        if have.copies < self.copies {
            missing.push(format!("{} of {} copies", have.copies, self.copies));
        }
        if have.media < self.media {
            missing.push(format!("{} of {} kinds of storage", have.media, self.media));
        }
        if have.offsite < self.offsite {
            missing.push(format!("{} of {} off-site copies", have.offsite, self.offsite));
        }
        if have.immutable < self.immutable {
            missing.push(format!("{} of {} immutable copies", have.immutable, self.immutable));
        }
        missing
    }

    /// Why this policy can never be met with `sites`; `None` when it can.
    pub fn unsatisfiable<'a>(self, sites: impl IntoIterator<Item = &'a Site>) -> Option<String> {
        let missing = self.shortfall(tally(sites.into_iter()));
        (!missing.is_empty()).then(|| {
            format!(
                "its destinations together give only {} (the live database counts as one copy)",
                missing.join(", ")
            )
        })
    }

    /// Newest transaction that is in enough places, given what each site holds (`held[i]` belongs to `sites[i]`).
    pub fn durable(self, sites: &[Site], held: &[Option<Txid>]) -> Option<Txid> {
        let mut candidates: Vec<Txid> = held.iter().flatten().copied().collect();
        candidates.sort_unstable_by(|a, b| b.cmp(a));
        candidates.dedup();
        candidates.into_iter().find(|txid| self.shortfall(tally(holders(sites, held, *txid))).is_empty())
    }

    /// What is missing for `txid` to be durable, for people; empty when nothing is.
    pub fn missing(self, sites: &[Site], held: &[Option<Txid>], txid: Txid) -> String {
        let missing = self.shortfall(tally(holders(sites, held, txid)));
        if missing.is_empty() {
            return String::new();
        }
        let behind: Vec<&str> = sites
            .iter()
            .zip(held)
            .filter(|(_, held)| held.is_none_or(|held| held < txid))
            .map(|(site, _)| site.name.as_str())
            .collect();
        format!("{}; not yet in {}", missing.join(", "), behind.join(", "))
    }
}

fn holders<'a>(sites: &'a [Site], held: &'a [Option<Txid>], txid: Txid) -> impl Iterator<Item = &'a Site> {
    sites
        .iter()
        .zip(held)
        .filter(move |(_, held)| held.is_some_and(|held| held >= txid))
        .map(|(site, _)| site)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn site(name: &str, media: &str, offsite: bool) -> Site {
        Site { name: name.into(), media: media.into(), offsite, immutable: false }
    }

    fn txid(n: u64) -> Option<Txid> {
        Txid::new(n)
    }

    const THREE_TWO_ONE: Policy = Policy { copies: 3, media: 2, offsite: 1, immutable: 0 };

    #[test]
    fn three_two_one_needs_a_disk_and_an_offsite_object_store() {
        let sites = [site("disk", "disk", false), site("cloud", "object", true)];
        assert_eq!(THREE_TWO_ONE.unsatisfiable(&sites), None);
        assert_eq!(THREE_TWO_ONE.durable(&sites, &[txid(9), txid(7)]), txid(7));
        assert_eq!(THREE_TWO_ONE.durable(&sites, &[txid(9), None]), None);
        assert_eq!(THREE_TWO_ONE.missing(&sites, &[txid(7), txid(7)], Txid::new(7).unwrap()), "");
        assert_eq!(
            THREE_TWO_ONE.missing(&sites, &[txid(9), txid(7)], Txid::new(9).unwrap()),
            "2 of 3 copies, 1 of 2 kinds of storage, 0 of 1 off-site copies; not yet in cloud"
        );
    }

    #[test]
    fn a_policy_that_can_never_be_met_is_told_why() {
        let sites = [site("a", "disk", false), site("b", "disk", false)];
        let why = THREE_TWO_ONE.unsatisfiable(&sites).unwrap();
        assert!(why.contains("1 of 2 kinds of storage") && why.contains("0 of 1 off-site"), "{why}");
        assert!(!why.contains("copies,"), "three copies are there: {why}");
        assert_eq!(Policy::default().unsatisfiable(&sites), None);
        assert!(Policy::default().unsatisfiable(&[]).is_some());
    }

    #[test]
    fn immutable_copies_are_those_under_object_lock() {
        let policy = Policy { immutable: 1, ..Policy::default() };
        let mut sites = [site("disk", "disk", false), site("cloud", "object", true)];
        assert!(policy.unsatisfiable(&sites).unwrap().contains("0 of 1 immutable copies"));
        sites[1].immutable = true;
        assert_eq!(policy.unsatisfiable(&sites), None);
        assert_eq!(policy.durable(&sites, &[txid(9), txid(4)]), txid(4));
        let missing = policy.missing(&sites, &[txid(9), txid(4)], Txid::new(9).unwrap());
        assert_eq!(missing, "0 of 1 immutable copies; not yet in cloud");
    }

    #[test]
    fn any_two_of_three_sites_are_enough_for_three_copies() {
        let policy = Policy { copies: 3, media: 1, offsite: 0, immutable: 0 };
        let sites = [site("a", "disk", false), site("b", "disk", false), site("c", "disk", false)];
        assert_eq!(policy.durable(&sites, &[txid(3), txid(9), txid(5)]), txid(5));
    }

    proptest! {
        #[test]
        fn durable_is_the_newest_with_nothing_missing(
            held in proptest::collection::vec(0..6u64, 4),
            copies in 1..6u32, media in 1..4u32, offsite in 0..3u32, immutable in 0..3u32,
        ) {
            let policy = Policy { copies, media, offsite, immutable };
            let mut sites = [
                site("a", "disk", false), site("b", "object", true), site("c", "tape", false), site("d", "disk", true),
            ];
            (sites[1].immutable, sites[3].immutable) = (true, true);
            let held: Vec<Option<Txid>> = held.into_iter().map(Txid::new).collect();
            let durable = policy.durable(&sites, &held);
            for n in 1..7u64 {
                let t = Txid::new(n).unwrap();
                let satisfied = policy.missing(&sites, &held, t).is_empty();
                let reached = held.iter().flatten().any(|held| *held >= t);
                prop_assert_eq!(satisfied && reached, durable.is_some_and(|d| d >= t));
            }
        }
    }
}
