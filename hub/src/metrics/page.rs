//! Values under their names, and the text of them: OpenMetrics 1.0, which Prometheus reads.
//!
//! The encoder escapes nothing, so a label's value is a name of ours, whose letters are harmless, or a fixed word.

use super::names::{ALL, Family, Kind, Unit};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{self, Registry};
use std::collections::HashMap;
use std::fmt;

/// The type of what [`Page::text`] gives.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A value.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Value {
    /// Of things that are counted.
    Whole(u64),
    /// Of time.
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Value::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Value::Whole(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Whole(value.into())
    }
}

/// Milliseconds as seconds.
pub(super) fn seconds(ms: u64) -> Value {
    Value::Real(ms as f64 / 1000.0)
}

/// Unix milliseconds as a time.
pub(super) fn time(ms: i64) -> Value {
    Value::Real(ms as f64 / 1000.0)
}

#[derive(Debug)]
struct Sample {
    labels: Vec<(&'static str, String)>,
    value: Value,
}

/// See the module doc.
#[derive(Debug, Default)]
pub(super) struct Page(HashMap<(&'static str, Unit), Vec<Sample>>);

impl Page {
    /// Adds a value; `labels` in the order of the family.
    pub(super) fn add(&mut self, family: &'static Family, labels: &[&str], value: impl Into<Value>) {
        assert_eq!(labels.len(), family.labels.len(), "BUG: labels of {}", family.name);
        let labels = family.labels.iter().copied().zip(labels.iter().map(|label| (*label).to_owned()));
        let sample = Sample { labels: labels.collect(), value: value.into() };
        self.0.entry((family.name, family.unit)).or_default().push(sample);
    }

    /// The whole page; every name is on it, also those without a value.
    pub(super) fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(out)
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in ALL {
            let unit = match family.unit {
                Unit::None => None,
                Unit::Seconds => Some(registry::Unit::Seconds),
                Unit::Bytes => Some(registry::Unit::Bytes),
            };
            let kind = match family.kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Counter => MetricType::Counter,
                Kind::Info => MetricType::Info,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, unit.as_ref(), kind)?;
            for sample in self.0.get(&(family.name, family.unit)).into_iter().flatten() {
                sample.encode(family.kind, &mut metric)?;
            }
        }
        Ok(())
    }
}

impl Sample {
    fn encode(&self, kind: Kind, metric: &mut MetricEncoder<'_>) -> fmt::Result {
        if kind == Kind::Info {
            return metric.encode_info(&self.labels);
        }
        if self.labels.is_empty() {
            return self.value.encode(kind, metric);
        }
        self.value.encode(kind, &mut metric.encode_family(&self.labels)?)
    }
}

impl Value {
    fn encode(self, kind: Kind, metric: &mut MetricEncoder<'_>) -> fmt::Result {
        let none: Option<&Exemplar<NoLabelSet, u64>> = None;
        match (kind, self) {
            (Kind::Counter, Value::Whole(value)) => metric.encode_counter(&value, none),
            (Kind::Counter, Value::Real(value)) => metric.encode_counter(&value, none),
            (_, Value::Whole(value)) => metric.encode_gauge(&value),
            (_, Value::Real(value)) => metric.encode_gauge(&value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::{BUFFER_SEGMENT_BYTES, BUILD, DESTINATION_DOWN, START};
    use super::*;

    #[test]
    fn values_stand_under_their_names_and_every_name_is_there() {
        let mut page = Page::default();
        page.add(&BUILD, &["1.2"], true);
        page.add(&START, &[], time(1_500));
        page.add(&DESTINATION_DOWN, &["far", "bucket missing"], true);
        page.add(&DESTINATION_DOWN, &["near", "full"], true);
        page.add(&BUFFER_SEGMENT_BYTES, &[], 1_u64 << 50);
        let text = page.text().unwrap();
        for lines in [
            "# TYPE walhub_build info\nwalhub_build_info{version=\"1.2\"} 1\n",
            "# UNIT walhub_start_time_seconds seconds\nwalhub_start_time_seconds 1.5\n",
            "# TYPE walhub_destination_down gauge\nwalhub_destination_down{destination=\"far\",cause=\"bucket missing\"} 1\n\
             walhub_destination_down{destination=\"near\",cause=\"full\"} 1\n# ",
            "# UNIT walhub_buffer_segment_bytes bytes\nwalhub_buffer_segment_bytes_total 1125899906842624\n",
        ] {
            assert!(text.contains(lines), "no {lines:?} in\n{text}");
        }
        assert_eq!(text.matches("# HELP ").count(), ALL.len());
        assert!(text.ends_with("\n# EOF\n"));
    }
}
