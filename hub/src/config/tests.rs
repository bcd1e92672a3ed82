use super::*;
use walhub_store::destinations::config::{DestinationConfig, FileConfig};

fn parse_text(text: &str) -> Result<Config, String> {
    Config::from_text(text).map_err(|e| e.to_string())
}

const HEAD: &str = "listen: 127.0.0.1:7443\ntls: {ca: a, cert: b, key: c}\n";

#[test]
fn a_small_file_gets_defaults() {
    let config =
        parse_text(&format!("{HEAD}destinations:\n  - {{name: disk, type: file, path: /srv/copies}}\n"))
            .unwrap();
    assert_eq!(config.data_dir, Path::new(DEFAULT_DATA_DIR));
    let buffer = BufferConfig { max_bytes: DEFAULT_BUFFER_BYTES, when_full: crate::buffer::WhenFull::Block };
    assert_eq!(config.buffer, buffer);
    assert_eq!(config.policy, Policy { copies: 2, media: 1, offsite: 0, immutable: 0 });
    let disk = &config.destinations[0];
    assert_eq!(disk.sync_interval, Duration::from_secs(1));
    assert_eq!((disk.site.media.as_str(), disk.site.offsite), ("disk", false));
    assert_eq!(disk.config, DestinationConfig::File(FileConfig { path: "/srv/copies".into() }));
}

#[test]
fn the_3_2_1_rule_is_met_by_a_folder_and_a_bucket() {
    let text = format!(
        "{HEAD}policy: {{copies: 3, media: 2, offsite: 1}}
destinations:
  - {{name: near, type: file, path: /srv/copies}}
  - name: far
    type: s3
    bucket: b
    path: /fleet/
    endpoint: http://127.0.0.1:9000
    access-key-id: id
    secret-access-key: secret
    sync-interval: 10s
"
    );
    let config = parse_text(&text).unwrap();
    let DestinationConfig::S3(far) = &config.destinations[1].config else { panic!("not s3") };
    assert_eq!((far.bucket.as_str(), far.prefix.as_str()), ("b", "fleet"));
    assert!(config.destinations[1].site.offsite);
}

#[test]
fn a_policy_that_can_never_be_met_is_a_fault() {
    let text = format!(
        "{HEAD}policy: {{offsite: 1}}\ndestinations:\n  - {{name: a, type: file, path: /srv/copies}}\n"
    );
    let faults = parse_text(&text).unwrap_err();
    assert!(faults.contains("hub.yml:3: policy: can never be met"), "{faults}");
    assert!(faults.contains("0 of 1 off-site copies"), "{faults}");
}

#[test]
fn all_faults_come_at_once_with_their_lines() {
    let text = "\
listen: here
tls: {ca: a, cert: b}
bufer: {max-bytes: 1GiB}
buffer: {max-bytes: 5}
destinations:
  - {name: near, type: file}
  - {name: near, type: file, path: /a, sync-interval: 5 parsecs}
  - {name: far, type: s3, endpoint: nowhere, access-key-id: x}
  - {name: tape, type: tape, path: /dev/st0}
  - {name: buffer, type: file, path: /b}
  - {name: again, type: file, path: /a}
";
    let faults = parse_text(text).unwrap_err();
    for (line, words) in [
        (1, "listen"),
        (2, "tls.key: is missing"),
        (3, "did you mean \"buffer\""),
        (4, "buffer.max-bytes"),
        (6, "path: is missing"),
        (7, "two destinations are called near"),
        (7, "5 parsecs"),
        (8, "bucket: is missing"),
        (8, "nowhere"),
        (8, "no secret-access-key"),
        (9, "tape"),
        (10, "give this one another name"),
        (11, "the place of near already"),
    ] {
        let place = format!("hub.yml:{line}:");
        let found = faults.lines().any(|fault| fault.starts_with(&place) && fault.contains(words));
        assert!(found, "nothing says {words:?} at line {line}:\n{faults}");
    }
}

#[test]
fn a_path_that_cannot_become_a_folder_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert_eq!(destination::can_be_made(dir.path()), Ok(()));
    assert_eq!(destination::can_be_made(&dir.path().join("a/b")), Ok(()));
    assert!(!dir.path().join("a").exists(), "a look must not make anything");
    for path in [file.clone(), file.join("below")] {
        let reason = destination::can_be_made(&path).unwrap_err();
        assert!(reason.contains("is not a folder"), "{reason}");
    }
}

const TWO: &str = "destinations:
  - {name: near, type: file, path: /srv/copies}
  - {name: far, type: s3, bucket: b, endpoint: 'http://127.0.0.1:9000', access-key-id: i, secret-access-key: s}
";

#[test]
fn selectors_say_what_applies_to_some_databases() {
    let text = format!(
        "{HEAD}policy: {{copies: 3, media: 2, offsite: 1}}
{TWO}databases:
  - {{match: 'pos-*/app.db', sync-interval: 60s, destinations: near, policy: {{copies: 2}}, retention: 168h}}
  - {{match: [lab-1/*, lab-2/*], destinations: [far, near]}}
"
    );
    let config = parse_text(&text).unwrap();
    let [pos, lab] = &config.databases[..] else { panic!("{:?}", config.databases) };
    assert!(pos.matches(&"pos-7/app.db".parse().unwrap()) && !pos.matches(&"pos-7/log.db".parse().unwrap()));
    assert_eq!(
        (pos.sync_interval, pos.retention),
        (Some(Duration::from_secs(60)), Some(Duration::from_secs(604_800)))
    );
    assert_eq!(pos.policy, Policy { copies: 2, media: 1, offsite: 0, immutable: 0 });
    assert!(pos.chooses(&"near".parse().unwrap()) && !pos.chooses(&"far".parse().unwrap()));
    assert_eq!((lab.policy, lab.sync_interval), (config.policy, None));
    assert_eq!(lab.destinations.as_ref().map(Vec::len), Some(2));
}

#[test]
fn a_selector_whose_policy_can_never_be_met_is_a_fault_with_its_line() {
    let text = format!(
        "{HEAD}policy: {{copies: 3, media: 2, offsite: 1}}
{TWO}databases:
  - match: a/*
    destinations: near
  - match: b/*
    destinations: far
    policy: {{copies: 3}}
  - match: c/*
    policy: {{immutable: 1}}
  - match: d/*
    destinations: [near, fra]
    policy: {{copies: 9}}
  - destinations: []
    retention: 1s
    synk-interval: 1s
"
    );
    let faults = parse_text(&text).unwrap_err();
    for (line, words) in [
        (
            8,
            "databases[0]: the policy of all databases can never be met here: its destinations together give only 2 of 3 copies",
        ),
        (12, "databases[1].policy: can never be met"),
        (14, "0 of 1 immutable copies"),
        (16, "there is no destination called fra; did you mean \"far\"?"),
        (18, "match: is missing"),
        (18, "names none"),
        (19, "out of bounds"),
        (20, "did you mean \"sync-interval\""),
    ] {
        let place = format!("hub.yml:{line}:");
        let found = faults.lines().any(|fault| fault.starts_with(&place) && fault.contains(words));
        assert!(found, "nothing says {words:?} at line {line}:\n{faults}");
    }
    assert_eq!(faults.lines().count(), 8, "{faults}");
}

#[test]
fn the_cursor_belongs_to_the_place_and_not_to_the_name() {
    let entry = |name, path| DestinationEntry::folder(name, Path::new(path)).cursor;
    assert_eq!(entry("a", "/srv/x"), entry("b", "/srv/x"));
    assert_ne!(entry("a", "/srv/x"), entry("a", "/srv/y"));
    let two = parse_text(&format!("{HEAD}{TWO}")).unwrap().destinations;
    assert_ne!(two[0].cursor, two[1].cursor);
}

#[test]
fn a_destination_under_object_lock_counts_as_immutable_and_no_other() {
    let text = |policy: &str| {
        format!(
            "{HEAD}policy: {{copies: 3, immutable: {policy}}}
destinations:
  - {{name: near, type: file, path: /srv/copies}}
  - {{name: locked, type: s3, bucket: b, region: r, object-lock: {{mode: governance, days: 30}}}}
"
        )
    };
    let config = parse_text(&text("1")).unwrap();
    let immutable: Vec<bool> = config.destinations.iter().map(|entry| entry.site.immutable).collect();
    assert_eq!((config.policy.immutable, immutable), (1, vec![false, true]));
    let faults = parse_text(&text("2")).unwrap_err();
    assert!(faults.contains("hub.yml:3: policy: can never be met"), "{faults}");
    assert!(faults.contains("1 of 2 immutable copies"), "{faults}");
}

#[test]
fn levels_have_a_short_and_a_long_form_and_must_nest() {
    let disk = "destinations:\n  - {name: disk, type: file, path: /srv/copies, snapshot-interval: 4h}\n";
    let config = parse_text(&format!("{HEAD}{disk}")).unwrap();
    assert_eq!(config.levels, DEFAULT_LEVELS);
    assert_eq!(config.destinations[0].snapshot_interval, Duration::from_secs(4 * 3600));
    let minutes = |all: &[u64]| all.iter().map(|m| Duration::from_secs(60 * m)).collect::<Vec<_>>();
    for (text, expected) in [
        ("levels: [1m, 10m]\n", minutes(&[1, 10])),
        ("levels:\n  - interval: 1m\n  - interval: 5m\n", minutes(&[1, 5])),
        ("levels: []\n", minutes(&[])),
    ] {
        assert_eq!(parse_text(&format!("{HEAD}{disk}{text}")).unwrap().levels, expected, "{text}");
    }
    for text in ["levels: [1m, 90s]\n", "levels: [0s]\n", "levels:\n  - interval: 1m\n    intervall: 2m\n"] {
        let faults = parse_text(&format!("{HEAD}{disk}{text}")).unwrap_err();
        assert!(faults.contains("levels"), "{faults}");
    }
}
