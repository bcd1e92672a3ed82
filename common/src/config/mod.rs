//! Configuration files: YAML in, typed values out, every fault at once with its line.
//!
//! # Invariants
//! - All faults of a file are reported together, in the order of lines, as `file:line: key.path: message`, and a file
//!   with any fault yields no configuration. (A syntax error hides what follows it, so it comes alone.)
//! - Whoever reads a section names the keys it knows by asking for them; [`Section::finish`] reports the others, with
//!   "did you mean". A key given twice is a fault.
//! - No input makes the reader panic, recurse without bound or grow: a file has at most [`MAX_CONFIG_BYTES`], nests at
//!   most [`MAX_DEPTH`] deep, and YAML aliases (which multiply) are refused.
//! - `${NAME}` and `${NAME:-default}` are replaced in every value, before it is typed; `$${` stands for `${`.
//!
//! # Use
//! Ask for everything first, use `?` on what is required last: so every fault is seen.
//! ```
//! use std::{net::SocketAddr, path::PathBuf, time::Duration};
//! use walhub_common::config::{Document, Faults, value};
//! use walhub_common::DestinationName;
//!
//! struct Config { listen: SocketAddr, buffer: u64, destinations: Vec<(DestinationName, PathBuf, Duration)> }
//!
//! fn config(doc: &Document) -> Option<Config> {
//!     let mut root = doc.root();
//!     let listen = root.required("listen", value::socket_addr);
//!     let mut section = root.section("buffer"); // empty when the file has none
//!     let buffer = section.or("max-bytes", 10 << 30, value::bytes);
//!     section.finish();
//!     let mut destinations: Vec<(DestinationName, PathBuf, Duration)> = Vec::new();
//!     for mut item in root.sections("destinations") {
//!         let name = item.required("name", value::parsed::<DestinationName>);
//!         let path = item.required("path", value::path);
//!         let every = item.or("sync-interval", Duration::from_secs(1), value::duration);
//!         if let Some(name) = &name && destinations.iter().any(|(other, ..)| other == name) {
//!             item.fault_at("name", format!("two destinations are called {name}")); // a fault across fields
//!         }
//!         item.finish();
//!         if let (Some(name), Some(path)) = (name, path) { destinations.push((name, path, every)); }
//!     }
//!     root.finish();
//!     Some(Config { listen: listen?, buffer, destinations })
//! }
//!
//! fn load(text: &str) -> Result<Config, Faults> {
//!     let doc = Document::parse("hub.yml", text)?; // or Document::read(path)?
//!     doc.check(config(&doc))
//! }
//!
//! let good = load("listen: 127.0.0.1:9443\ndestinations:\n  - {name: disk, path: /srv/copies, sync-interval: 500ms}");
//! assert_eq!(good.ok().map(|c| (c.buffer, c.destinations[0].2)), Some((10 << 30, Duration::from_millis(500))));
//!
//! let faults = load("listn: 127.0.0.1:9443\nbuffer:\n  max-bytes: lots").err().unwrap();
//! assert_eq!(faults.to_string(), "\
//! hub.yml:1: listen: is missing
//! hub.yml:1: listn: unknown key; did you mean \"listen\"?
//! hub.yml:3: buffer.max-bytes: \"lots\" is not a size; write a number with a unit, such as 64MiB or 10GB");
//! ```
//!
//! Non-goals: no writing, no merging of files, no YAML beyond maps, lists and scalars.

mod document;
mod env;
mod fault;
pub mod parts;
mod section;
mod skeleton;
mod tree;
pub mod value;

pub use document::{Document, MAX_CONFIG_BYTES};
pub use fault::{Fault, Faults, did_you_mean};
pub use section::Section;
pub use tree::MAX_DEPTH;

#[cfg(test)]
mod tests;
