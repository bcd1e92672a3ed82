//! What a session will do, decided before it starts: the same seed gives the same plan on every machine, however fast.

use crate::dice::Dice;
use std::fmt;

/// Profiles of writers. The last ones die or fail at one exact instant, or are killed from outside.
pub(crate) const PROFILES: [&str; 20] = [
    "small",
    "tight",
    "checkpoint-each",
    "checkpoint-never",
    "spill",
    "savepoint",
    "rollback",
    "storm",
    "openclose",
    "vacuum",
    "modes",
    "pagesize",
    "exclusive",
    "reader",
    "tight",
    "die-in-sync",
    "die-torn",
    "fail-in-sync",
    "die-spilled",
    "killed",
];
/// Where the deadly ones begin.
const DEADLY: usize = 15;
pub(crate) const PAGE_SIZES: [u32; 5] = [512, 1024, 4096, 8192, 65536];
const WRITERS: usize = 4;
const ROUNDS: usize = 3;

/// The SQLite inside a writer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Engine {
    /// The machine's own library.
    System,
    /// 3.51.1, whose checkpointer has the WAL-reset bug.
    Old,
    /// The workspace's own.
    New,
}

pub(crate) const ENGINES: [Engine; 3] = [Engine::System, Engine::Old, Engine::New];

/// How long rounds are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Length {
    /// Less than two seconds, for many sessions in a minute.
    Short,
    /// Three to eight seconds.
    Long,
}

/// What is replicated, and which faults that allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Game {
    /// The product, with every fault.
    Full,
    /// The canary: deadly writers, and nothing that happens to an agent.
    DeadlyWriters,
    /// The canary's counterpart: the same without any fault.
    NoFaults,
}

/// What happens to the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// SIGKILL, and a restart later.
    Kill { away_ms: u64 },
    /// SIGSTOP, and SIGCONT later.
    Freeze { ms: u64 },
    /// Every write to its state folder says "no space left".
    DiskFull { ms: u64 },
    /// YIELD and back: the applications checkpoint by themselves meanwhile.
    Pause { ms: u64 },
    /// SHRINK in the midst of it all.
    Shrink,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct WriterPlan {
    pub(crate) profile: &'static str,
    pub(crate) engine: Engine,
    pub(crate) seed: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Round {
    pub(crate) ms: u64,
    pub(crate) writers: Vec<WriterPlan>,
    /// Pause before each, then the fault.
    pub(crate) faults: Vec<(u64, Fault)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) page_size: u32,
    pub(crate) auto_vacuum: u64,
    pub(crate) checkpoint_frames: u32,
    pub(crate) rounds: Vec<Round>,
}

impl Plan {
    pub(crate) fn new(seed: u64, length: Length, game: Game) -> Plan {
        let mut dice = Dice::new(seed);
        Plan {
            seed,
            page_size: *dice.pick(&PAGE_SIZES),
            auto_vacuum: dice.below(3),
            checkpoint_frames: *dice.pick(&[50, 300, 1000]),
            rounds: (0..ROUNDS).map(|_| Round::new(&mut dice, length, game)).collect(),
        }
    }
}

impl Round {
    fn new(dice: &mut Dice, length: Length, game: Game) -> Round {
        let ms = match length {
            Length::Short => 600 + dice.below(1200),
            Length::Long => 3000 + dice.below(5000),
        };
        let writers = (0..WRITERS).map(|slot| {
            let profile = match (game, slot) {
                (Game::Full, 0) if dice.below(2) == 0 => dice.pick(&PROFILES[DEADLY..]),
                (Game::Full, _) => dice.pick(&PROFILES),
                // The log must show phantoms, and somebody must write over them.
                (Game::DeadlyWriters, 0 | 1) => dice.pick(&["die-in-sync", "fail-in-sync"]),
                (Game::DeadlyWriters, _) => dice.pick(&["small", "tight", "spill"]),
                // No ROLLBACK TO: an SQLite before 3.41 commits frames after it that no reader of the file can verify.
                (Game::NoFaults, _) => dice.pick(&["small", "tight", "spill", "rollback"]),
            };
            WriterPlan { profile, engine: *dice.pick(&ENGINES), seed: dice.roll() }
        });
        let writers = writers.collect();
        let mut faults = Vec::new();
        let mut at = if game == Game::Full { 0 } else { ms };
        loop {
            let pause = 100 + dice.below(if length == Length::Short { 1400 } else { 2000 });
            at += pause;
            if at >= ms {
                break;
            }
            let fault = match dice.below(11) {
                0..4 => Fault::Kill { away_ms: *dice.pick(&[0, 50, 500, 1500]) },
                4..6 => Fault::Freeze { ms: 200 + dice.below(1300) },
                6..8 => Fault::DiskFull { ms: 100 + dice.below(700) },
                8..10 => Fault::Pause { ms: 100 + dice.below(900) },
                _ => Fault::Shrink,
            };
            faults.push((pause, fault));
        }
        Round { ms, writers, faults }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { seed, page_size, auto_vacuum, checkpoint_frames, .. } = self;
        write!(
            f,
            "session {seed}: page size {page_size}, auto_vacuum {auto_vacuum}, checkpoint after {checkpoint_frames} frames"
        )
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms:", self.ms)?;
        for writer in &self.writers {
            write!(f, " {}/{:?}", writer.profile, writer.engine)?;
        }
        for (pause, fault) in &self.faults {
            write!(f, ", +{pause} {fault:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn one_seed_is_one_plan() {
        for seed in 0..50 {
            let plan = |length| Plan::new(seed, length, Game::Full);
            assert_eq!(plan(Length::Short), plan(Length::Short));
            assert_ne!(plan(Length::Short).rounds, Plan::new(seed + 1, Length::Short, Game::Full).rounds);
        }
    }

    #[test]
    fn a_few_sessions_meet_every_case() {
        let plans: Vec<Plan> = (1..=40).map(|seed| Plan::new(seed, Length::Short, Game::Full)).collect();
        let rounds = || plans.iter().flat_map(|plan| &plan.rounds);
        let writers = || rounds().flat_map(|round| &round.writers);
        let profiles: BTreeSet<_> = writers().map(|writer| writer.profile).collect();
        assert_eq!(profiles, PROFILES.into_iter().collect());
        for engine in ENGINES {
            assert!(writers().any(|writer| writer.engine == engine), "{engine:?}");
        }
        let sizes: BTreeSet<_> = plans.iter().map(|plan| plan.page_size).collect();
        assert_eq!(sizes, PAGE_SIZES.into_iter().collect());
        let vacuums: BTreeSet<_> = plans.iter().map(|plan| plan.auto_vacuum).collect();
        assert_eq!(vacuums, BTreeSet::from([0, 1, 2]));
        let faults: Vec<Fault> = rounds().flat_map(|round| &round.faults).map(|(_, fault)| *fault).collect();
        assert!(faults.iter().any(|fault| matches!(fault, Fault::Kill { away_ms: 1500 })));
        assert!(faults.iter().any(|fault| matches!(fault, Fault::Freeze { .. })));
        assert!(faults.iter().any(|fault| matches!(fault, Fault::DiskFull { .. })));
        assert!(faults.iter().any(|fault| matches!(fault, Fault::Pause { .. })));
        assert!(faults.contains(&Fault::Shrink));
    }
}
