//! Waves: how many nodes the first orders go to, before more do.

use walhub_common::AgentName;

/// Waves of one job.
const MAX_WAVES: usize = 64;

/// A wave that is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WaveError {
    /// Not a count, not a percentage.
    #[error("{0:?} is no wave: write a number of nodes from 1, or a percentage up to 100%")]
    Unknown(String),
    /// Smaller than the one before it.
    #[error(
        "wave {0:?} ends before the one ahead of it does: waves say how many nodes are done at their end"
    )]
    Shrinks(String),
    /// Too many.
    #[error("there are more than {MAX_WAVES} waves")]
    TooMany,
}

/// The wave, from 1, of each of these nodes, which are all different: nodes up to the end of each wave, in counts or
/// percentages of all, rounded up. What the last wave leaves over is one more wave. Waves that no node is left for are none.
pub(super) fn assign(nodes: &[AgentName], waves: &[String]) -> Result<Vec<u32>, WaveError> {
    if waves.len() > MAX_WAVES {
        return Err(WaveError::TooMany);
    }
    let total = nodes.len();
    let mut ends = Vec::new();
    let mut before: Option<Wave> = None;
    for text in waves {
        let wave = parse(text)?;
        // Whether 5 nodes are fewer than 10% depends on the fleet: then the later wave is just empty.
        if before.is_some_and(|before| before.comparable(wave) && wave.size(10_000) < before.size(10_000)) {
            return Err(WaveError::Shrinks(text.clone()));
        }
        before = Some(wave);
        ends.push(wave.size(total).min(total));
    }
    ends.push(total);
    let (mut assigned, mut wave) = (Vec::with_capacity(total), 0);
    for end in ends {
        if end > assigned.len() {
            wave += 1;
            assigned.resize(end, wave);
        }
    }
    Ok(assigned)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wave {
    Count(usize),
    Percent(usize),
}

impl Wave {
    fn size(self, total: usize) -> usize {
        match self {
            Wave::Count(count) => count,
            Wave::Percent(percent) => (total * percent).div_ceil(100),
        }
    }

    fn comparable(self, other: Wave) -> bool {
        matches!((self, other), (Wave::Count(_), Wave::Count(_)) | (Wave::Percent(_), Wave::Percent(_)))
    }
}

fn parse(text: &str) -> Result<Wave, WaveError> {
    let unknown = || WaveError::Unknown(text.chars().take(40).collect());
    let text = text.trim();
    let (number, percent) = match text.strip_suffix('%') {
        Some(number) => (number, true),
        None => (text, false),
    };
    let number: usize = number.trim().parse().map_err(|_| unknown())?;
    match (number, percent) {
        (1..=100, true) => Ok(Wave::Percent(number)),
        (1..=1_000_000, false) => Ok(Wave::Count(number)),
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(nodes: usize, waves: &[&str]) -> Result<Vec<u32>, WaveError> {
        let nodes: Vec<AgentName> = (0..nodes).map(|n| AgentName::new(format!("n{n:05}")).unwrap()).collect();
        assign(&nodes, &waves.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    fn sizes(of: &[u32]) -> Vec<usize> {
        let last = of.last().copied().unwrap_or(0);
        (1..=last).map(|wave| of.iter().filter(|w| **w == wave).count()).collect()
    }

    #[test]
    fn percentages_and_counts_are_where_a_wave_ends() {
        assert_eq!(sizes(&waves(100, &["1%", "10%", "100%"]).unwrap()), [1, 9, 90]);
        assert_eq!(sizes(&waves(100, &["1", "5", "50%"]).unwrap()), [1, 4, 45, 50]);
        assert_eq!(sizes(&waves(7, &["1%", "10%", "100%"]).unwrap()), [1, 6], "1% and 10% of 7 are one node");
        assert_eq!(sizes(&waves(3, &[]).unwrap()), [3]);
        assert_eq!(sizes(&waves(3, &["500"]).unwrap()), [3]);
        assert!(waves(0, &["1%"]).unwrap().is_empty());
    }

    #[test]
    fn every_node_is_in_a_wave_and_waves_have_no_gaps() {
        for nodes in 0..150 {
            for spec in [&["1%", "2%", "50%"][..], &["1", "3", "9", "99%"], &["100%"], &["40", "60"]] {
                let of = waves(nodes, spec).unwrap();
                assert_eq!(of.len(), nodes);
                assert!(of.is_sorted() && sizes(&of).iter().all(|size| *size > 0), "{nodes} {spec:?}");
                assert!(of.first().is_none_or(|first| *first == 1));
            }
        }
    }

    #[test]
    fn what_is_no_wave_is_named() {
        for bad in ["", "0", "0%", "101%", "-1", "ten", "1.5%", "%", "99999999999999999999"] {
            assert!(matches!(waves(9, &[bad]), Err(WaveError::Unknown(_))), "{bad}");
        }
        assert_eq!(waves(9, &["10%", "5%"]), Err(WaveError::Shrinks("5%".into())));
        assert_eq!(waves(9, &["3", "2"]), Err(WaveError::Shrinks("2".into())));
        assert_eq!(waves(9, &vec!["1"; 65]), Err(WaveError::TooMany));
    }
}
