//! `metrics:`, where the hub's metrics are asked for.

use std::net::SocketAddr;
use walhub_common::config::{Section, value};

/// Where to listen; `None` without the section: then nobody can ask.
pub(super) fn listen(root: &mut Section<'_>, grpc: Option<SocketAddr>) -> Option<SocketAddr> {
    let mut section = root.optional_section("metrics")?;
    let listen = section.required("listen", value::socket_addr);
    if listen.is_some_and(|listen| listen.port() != 0 && grpc == Some(listen)) {
        section.fault_at("listen", "is the address that agents connect to; metrics take a port of their own");
    }
    section.finish();
    listen
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn parse(metrics: &str) -> Result<Config, String> {
        let text = format!(
            "listen: 127.0.0.1:7443\ntls: {{ca: a, cert: b, key: c}}\ndestinations: [{{name: d, type: file, path: \
             /srv/x}}]\n{metrics}"
        );
        Config::from_text(&text).map_err(|faults| faults.to_string())
    }

    #[test]
    fn nobody_can_ask_unless_the_file_says_where() {
        assert_eq!(parse("").unwrap().metrics, None);
        let config = parse("metrics: {listen: '127.0.0.1:9464'}\n").unwrap();
        assert_eq!(config.metrics, Some("127.0.0.1:9464".parse().unwrap()));
    }

    #[test]
    fn faults_name_the_key_and_its_line() {
        for (text, line, words) in [
            ("metrics: {}\n", 4, "metrics.listen: is missing"),
            ("metrics:\n  listen: 9464\n", 5, "metrics.listen"),
            ("metrics:\n  lisen: 127.0.0.1:9464\n", 5, "did you mean \"listen\""),
            ("metrics: {listen: '127.0.0.1:7443'}\n", 4, "a port of their own"),
        ] {
            let faults = parse(text).unwrap_err();
            let place = format!("hub.yml:{line}:");
            let found = faults.lines().any(|fault| fault.starts_with(&place) && fault.contains(words));
            assert!(found, "nothing says {words:?} at line {line}:\n{faults}");
        }
    }
}
