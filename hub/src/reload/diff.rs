//! What a new configuration changes in a running hub, as a value. Pure.

use crate::config::{Config, DestinationEntry};
use crate::copies::Policy;

/// What becomes of a destination of the new configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It was not there before.
    Added,
    /// It is as it was: its lane is left alone.
    Kept {
        /// Place in the old configuration.
        old: usize,
    },
    /// The same place under another name, or with other settings: its lane goes on where it was, with what is new.
    Changed {
        /// Place in the old configuration.
        old: usize,
    },
}

/// See the module doc.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diff {
    /// One for each destination of the new configuration, in its order.
    pub fates: Vec<Fate>,
    /// Destinations of the old configuration that are gone, by their place in it.
    pub removed: Vec<usize>,
    /// Everything that changes, for people, one sentence each.
    pub changes: Vec<String>,
    /// Keys that differ and take effect at the next start only.
    pub needs_restart: Vec<&'static str>,
}

/// Compares two configurations.
pub fn diff(old: &Config, new: &Config) -> Diff {
    // Every field by name: whoever adds one decides here whether it can be reloaded.
    let Config {
        path: _,
        skeleton: _,
        mirror_interval,
        drills,
        metrics,
        listen,
        data_dir,
        tls,
        buffer,
        levels,
        policy,
        databases,
        destinations,
        log_level,
        log_format,
    } = new;
    let restart = [
        ("listen", *listen != old.listen),
        ("data-dir", *data_dir != old.data_dir),
        ("tls", *tls != old.tls),
        ("buffer.max-bytes", buffer.max_bytes != old.buffer.max_bytes),
        ("buffer.when-full", buffer.when_full != old.buffer.when_full),
        ("levels", *levels != old.levels),
        ("mirror-interval", *mirror_interval != old.mirror_interval),
        ("metrics", *metrics != old.metrics),
        ("log", (log_level, log_format) != (&old.log_level, &old.log_format)),
    ];
    let fates: Vec<Fate> = destinations.iter().map(|entry| fate(&old.destinations, entry)).collect();
    let stays = |index: usize| fates.iter().any(|fate| fate.old() == Some(index));
    let removed: Vec<usize> = (0..old.destinations.len()).filter(|index| !stays(*index)).collect();
    let mut changes: Vec<String> = Vec::new();
    for (entry, fate) in destinations.iter().zip(&fates) {
        changes.extend(said(entry, *fate, &old.destinations));
    }
    changes.extend(
        removed.iter().map(|index| format!("destination {} is removed", old.destinations[*index].name)),
    );
    if *policy != old.policy {
        changes.push(format!("the policy is {}, it was {}", words(*policy), words(old.policy)));
    }
    if *databases != old.databases {
        changes.push(format!(
            "databases has {} entries, it had {}, and not the same",
            databases.len(),
            old.databases.len()
        ));
    }
    if *drills != old.drills {
        changes.push("drills has other settings".to_owned());
    }
    let needs_restart = restart.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect();
    Diff { fates, removed, changes, needs_restart }
}

impl Fate {
    /// Place in the old configuration.
    pub fn old(self) -> Option<usize> {
        match self {
            Fate::Added => None,
            Fate::Kept { old } | Fate::Changed { old } => Some(old),
        }
    }
}

impl Diff {
    /// Takes from the old configuration what cannot be reloaded: the next comparison names it again.
    pub fn settle(&self, old: &Config, new: Config) -> Config {
        // Every field by name, as above: one that is forgotten here would look as if it had taken effect.
        let Config { path, skeleton, policy, databases, destinations, drills, .. } = new;
        let Config {
            path: _,
            skeleton: _,
            policy: _,
            databases: _,
            destinations: _,
            drills: _,
            mirror_interval,
            metrics,
            listen,
            data_dir,
            tls,
            buffer,
            levels,
            log_level,
            log_format,
        } = old.clone();
        Config {
            path,
            skeleton,
            policy,
            databases,
            destinations,
            mirror_interval,
            metrics,
            drills,
            listen,
            data_dir,
            tls,
            buffer,
            levels,
            log_level,
            log_format,
        }
    }
}

/// The place decides which destination it is, not the name.
fn fate(old: &[DestinationEntry], entry: &DestinationEntry) -> Fate {
    match old.iter().position(|before| before.place == entry.place) {
        None => Fate::Added,
        Some(index) if old[index] == *entry => Fate::Kept { old: index },
        Some(index) => Fate::Changed { old: index },
    }
}

fn said(entry: &DestinationEntry, fate: Fate, old: &[DestinationEntry]) -> Option<String> {
    let name = &entry.name;
    match fate {
        Fate::Kept { .. } => None,
        Fate::Added if old.iter().any(|before| before.name == *name) => {
            Some(format!("destination {name} is another place now: it begins anew"))
        }
        Fate::Added => Some(format!("destination {name} is added")),
        Fate::Changed { old: index } => {
            let before = &old[index];
            let mut renamed = before.clone();
            renamed.name.clone_from(name);
            renamed.site.name.clone_from(&entry.site.name);
            Some(match (before.name == *name, renamed == *entry) {
                (true, _) => format!("destination {name} has other settings"),
                (false, true) => format!("destination {} is called {name} now", before.name),
                (false, false) => {
                    format!("destination {} is called {name} now and has other settings", before.name)
                }
            })
        }
    }
}

fn words(policy: Policy) -> String {
    let Policy { copies, media, offsite, immutable } = policy;
    format!("copies {copies}, media {media}, offsite {offsite}, immutable {immutable}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(destinations: &str, rest: &str) -> Config {
        Config::from_text(&format!(
            "listen: 127.0.0.1:7443\ntls: {{ca: a, cert: b, key: c}}\n{rest}\ndestinations: [{destinations}]\n"
        ))
        .unwrap()
    }

    const A: &str = "{name: a, type: file, path: /a}";
    const B: &str = "{name: b, type: file, path: /b}";

    #[test]
    fn the_same_file_changes_nothing() {
        let old = config(&format!("{A}, {B}"), "");
        let diff = diff(&old, &old.clone());
        assert_eq!(diff.fates, [Fate::Kept { old: 0 }, Fate::Kept { old: 1 }]);
        assert!(diff.changes.is_empty() && diff.removed.is_empty() && diff.needs_restart.is_empty());
    }

    #[test]
    fn the_place_tells_a_renamed_destination_from_another_one() {
        let old = config(&format!("{A}, {B}"), "");
        let new = config(
            "{name: far, type: file, path: /b}, {name: a, type: file, path: /elsewhere}, {name: c, type: file, path: /c}",
            "",
        );
        let diff = diff(&old, &new);
        assert_eq!(diff.fates, [Fate::Changed { old: 1 }, Fate::Added, Fate::Added]);
        assert_eq!(diff.removed, [0]);
        assert_eq!(
            diff.changes,
            [
                "destination b is called far now",
                "destination a is another place now: it begins anew",
                "destination c is added",
                "destination a is removed",
            ]
        );
    }

    #[test]
    fn two_destinations_may_change_names() {
        let old = config(&format!("{A}, {B}"), "");
        let new =
            config("{name: b, type: file, path: /a}, {name: a, type: file, path: /b, sync-interval: 9s}", "");
        let diff = diff(&old, &new);
        assert_eq!(diff.fates, [Fate::Changed { old: 0 }, Fate::Changed { old: 1 }]);
        assert_eq!(
            diff.changes,
            ["destination a is called b now", "destination b is called a now and has other settings"]
        );
    }

    #[test]
    fn rules_are_reloaded_and_the_rest_is_named() {
        let old = config(A, "");
        let rest = "drills: {sample: 7%}\npolicy: {copies: 1}\ndatabases: [{match: '*', sync-interval: 5s}]\nbuffer: {max-bytes: 1GiB}\n\
                    log: {level: debug}\ndata-dir: /tmp";
        let mut new = config(A, rest);
        new.listen.set_port(1);
        let diff = diff(&old, &new);
        assert_eq!(diff.fates, [Fate::Kept { old: 0 }]);
        assert_eq!(diff.changes.len(), 3, "{:?}", diff.changes);
        assert_eq!(diff.changes[2], "drills has other settings");
        assert!(diff.changes[0].starts_with("the policy is copies 1, media 1"), "{:?}", diff.changes);
        assert_eq!(diff.needs_restart, ["listen", "data-dir", "buffer.max-bytes", "log"]);
        let settled = diff.settle(&old, new);
        assert_eq!((settled.listen, settled.buffer), (old.listen, old.buffer));
        assert_eq!((settled.databases.len(), settled.drills.sample), (1, 7000));
        assert_eq!(super::diff(&settled, &settled.clone()).needs_restart, [""; 0]);
    }

    #[test]
    fn what_wants_a_restart_is_named_by_every_reload_until_it_came() {
        let old = config(A, "");
        let changes = [
            ("listen", "listen: 127.0.0.1:7444"),
            ("data-dir", "data-dir: /tmp"),
            ("tls", "tls: {ca: other, cert: b, key: c}"),
            ("buffer.max-bytes", "buffer: {max-bytes: 1GiB}"),
            ("buffer.when-full", "buffer: {when-full: squash}"),
            ("levels", "levels: [1m, 10m]"),
            ("mirror-interval", "mirror-interval: 7s"),
            ("log", "log: {level: debug}"),
        ];
        for (key, line) in changes {
            let (head, _) = line.split_once(':').unwrap();
            let base = ["listen: 127.0.0.1:7443", "tls: {ca: a, cert: b, key: c}"];
            let lines: Vec<&str> =
                base.into_iter().filter(|own| !own.starts_with(head)).chain([line]).collect();
            let new = Config::from_text(&format!("{}\ndestinations: [{A}]\n", lines.join("\n"))).unwrap();
            let mut settled = old.clone();
            for reload in 1..=3 {
                let diff = diff(&settled, &new);
                assert_eq!(diff.needs_restart, [key], "reload {reload}");
                settled = diff.settle(&settled, new.clone());
            }
            assert_eq!(super::diff(&settled, &old).needs_restart, [""; 0], "{key}: taken back");
        }
    }
}
