//! Log output: on stderr, so that stdout stays data.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Sets up logging once per process; `RUST_LOG` overrides `default_filter`. Panics are logged with their place.
pub fn init(format: LogFormat, default_filter: &str) {
    let asked = std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    // Levels and modules, no patterns over fields: those would bring a library of regular expressions along.
    let filter: Targets = asked
        .or_else(|| default_filter.parse().ok())
        .unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let done = match format {
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry.with(lines.with_ansi(terminal)).try_init()
        }
        LogFormat::Json => registry.with(lines.json()).try_init(),
    };
    if done.is_err() {
        return;
    }
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tracing::error!(panic = %info, "a bug ended a task; please report it");
        default_hook(info);
    }));
}
