//! The text format of Prometheus, version 0.0.4, and the tables that it is made of.
//!
//! A scope (shard, control thread, Redis, process, gateway, admin API) has one table; a [`Row`] of
//! it is one metric: name, kind, help, and where its value is read. What renders, renders in
//! slices: the caller who polls decides when the next slice is rendered, and nothing here waits for
//! anything else.

use std::fmt::{self, Display, Write};
use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;

use super::counter::{BUCKET_EDGES_US, Histogram};

/// A slice of a text, bytes: what an ordinary core renders in some 40 microseconds, which is what a
/// turn may give to it.
const SLICE_BYTES: usize = 8 * 1024;

/// Yields once to the other work of the thread.
pub async fn pause() {
    let mut paused = false;
    poll_fn(|context| {
        if paused {
            return Poll::Ready(());
        }
        paused = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The kind of a metric, as Prometheus tells them apart.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Gauge,
    Counter,
    Histogram,
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram => "histogram",
        })
    }
}

/// Labels and values, one by one.
type Samples<'a> = Box<dyn Iterator<Item = (String, f64)> + 'a>;

/// Where the samples of a metric are read, of a member `S` of its scope.
enum Values<S: ?Sized> {
    /// One sample.
    One(fn(&S) -> u64),
    /// One sample, or none: then the metric is absent.
    Optional(fn(&S) -> Option<u64>),
    /// One sample in seconds, or none: then the metric is absent.
    Seconds(fn(&S) -> Option<f64>),
    /// A sample for each value of a label.
    By(&'static str, &'static [&'static str], fn(&S, usize) -> u64),
    /// A sample for each pair of values of the labels `kind` and `reason`.
    ByReason(&'static [(&'static str, &'static str)], fn(&S, usize) -> u64),
    /// Times.
    Times(fn(&S) -> &Histogram),
    /// Times for each value of a label.
    TimesBy(&'static str, &'static [&'static str], fn(&S, usize) -> &Histogram),
    /// Labels that carry information; the value is 1.
    Info(fn(&S) -> String),
    /// A sample for each of some labels, which only the member knows.
    Each(for<'a> fn(&'a S) -> Samples<'a>),
}

/// One metric of a scope.
pub(super) struct Row<S: ?Sized> {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    values: Values<S>,
}

/// Constructors of rows, named after their kinds.
impl<S: ?Sized> Row<S> {
    const fn new(name: &'static str, kind: Kind, help: &'static str, values: Values<S>) -> Self {
        Row {
            name,
            kind,
            help,
            values,
        }
    }

    /// A number that rises and falls.
    pub(super) const fn gauge(name: &'static str, help: &'static str, of: fn(&S) -> u64) -> Self {
        Self::new(name, Kind::Gauge, help, Values::One(of))
    }

    /// A gauge that is absent if its value is unknown: 0 would look like a value.
    pub(super) const fn optional_gauge(name: &'static str, help: &'static str, of: fn(&S) -> Option<u64>) -> Self {
        Self::new(name, Kind::Gauge, help, Values::Optional(of))
    }

    /// A time in seconds, absent likewise.
    pub(super) const fn seconds(name: &'static str, help: &'static str, of: fn(&S) -> Option<f64>) -> Self {
        Self::new(name, Kind::Gauge, help, Values::Seconds(of))
    }

    /// A number that only rises.
    pub(super) const fn counter(name: &'static str, help: &'static str, of: fn(&S) -> u64) -> Self {
        Self::new(name, Kind::Counter, help, Values::One(of))
    }

    /// Counters by the values of a label.
    pub(super) const fn counters(
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: &'static [&'static str],
        of: fn(&S, usize) -> u64,
    ) -> Self {
        Self::new(name, Kind::Counter, help, Values::By(label, values, of))
    }

    /// Counters by the labels `kind` and `reason`.
    pub(super) const fn counters_by_reason(
        name: &'static str,
        help: &'static str,
        values: &'static [(&'static str, &'static str)],
        of: fn(&S, usize) -> u64,
    ) -> Self {
        Self::new(name, Kind::Counter, help, Values::ByReason(values, of))
    }

    /// Times in buckets.
    pub(super) const fn histogram(name: &'static str, help: &'static str, of: fn(&S) -> &Histogram) -> Self {
        Self::new(name, Kind::Histogram, help, Values::Times(of))
    }

    /// Times in buckets, by the values of a label.
    pub(super) const fn histograms(
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: &'static [&'static str],
        of: fn(&S, usize) -> &Histogram,
    ) -> Self {
        Self::new(name, Kind::Histogram, help, Values::TimesBy(label, values, of))
    }

    /// The version that runs and its like: labels, and 1.
    pub(super) const fn info(name: &'static str, help: &'static str, labels: fn(&S) -> String) -> Self {
        Self::new(name, Kind::Gauge, help, Values::Info(labels))
    }

    /// Gauges by labels that only the member knows.
    pub(super) const fn each(name: &'static str, help: &'static str, of: for<'a> fn(&'a S) -> Samples<'a>) -> Self {
        Self::new(name, Kind::Gauge, help, Values::Each(of))
    }

    fn is_absent(&self, member: &S) -> bool {
        match self.values {
            Values::Optional(of) => of(member).is_none(),
            Values::Seconds(of) => of(member).is_none(),
            _ => false,
        }
    }
}

/// The labels that name a sample's member of the scope, and the labels of the sample itself.
#[derive(Clone, Copy)]
pub(super) enum Member {
    /// The scope has one member.
    Only,
    /// A shard.
    Shard(usize),
    /// The control thread, among shards.
    Control,
}

impl Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Member::Only => Ok(()),
            Member::Shard(shard) => write!(f, "shard=\"{shard}\""),
            Member::Control => f.write_str("shard=\"control\""),
        }
    }
}

/// Builds the text, in slices.
#[derive(Debug, Default)]
pub struct Exposition {
    pieces: Vec<Bytes>,
    text: String,
}

impl Exposition {
    /// The text so far, in pieces.
    pub fn into_pieces(mut self) -> Vec<Bytes> {
        if !self.text.is_empty() {
            self.pieces.push(self.text.into());
        }
        self.pieces
    }

    /// The text so far.
    pub fn into_text(self) -> String {
        let pieces = self.into_pieces();
        pieces.iter().map(|piece| String::from_utf8_lossy(piece)).collect()
    }

    /// Pauses if there is a slice more than when it last paused. To be called after each thing of a
    /// few hundred bytes.
    pub async fn pause_after_slice(&mut self) {
        if self.text.len() >= SLICE_BYTES {
            let next = String::with_capacity(SLICE_BYTES + SLICE_BYTES / 4);
            self.pieces.push(std::mem::replace(&mut self.text, next).into());
            pause().await;
        }
    }

    /// Adds text that is no metric.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Adds the metrics of a scope with one member.
    pub(super) async fn table<S: ?Sized>(&mut self, rows: &[Row<S>], member: &S) {
        for row in rows.iter().filter(|row| !row.is_absent(member)) {
            self.head(row);
            self.samples(row, Member::Only, member).await;
        }
    }

    /// Begins a metric.
    pub(super) fn head<S: ?Sized>(&mut self, row: &Row<S>) {
        self.line(format_args!("# HELP {} {}", row.name, row.help));
        self.line(format_args!("# TYPE {} {}", row.name, row.kind));
    }

    /// Adds the samples of one member of a scope.
    pub(super) async fn samples<S: ?Sized>(&mut self, row: &Row<S>, who: Member, member: &S) {
        self.pause_after_slice().await;
        let name = row.name;
        match row.values {
            Values::One(of) => self.sample(name, who, None, of(member)),
            Values::Optional(of) => of(member)
                .into_iter()
                .for_each(|value| self.sample(name, who, None, value)),
            Values::Seconds(of) => of(member)
                .into_iter()
                .for_each(|value| self.sample(name, who, None, value)),
            Values::By(label, values, of) => {
                for (at, value) in values.iter().enumerate() {
                    self.sample(name, who, Some(format_args!("{label}=\"{value}\"")), of(member, at));
                }
            }
            Values::ByReason(values, of) => {
                for (at, (kind, reason)) in values.iter().enumerate() {
                    let labels = format_args!("kind=\"{kind}\",reason=\"{reason}\"");
                    self.sample(name, who, Some(labels), of(member, at));
                }
            }
            Values::Times(of) => self.histogram(name, &who.to_string(), of(member)),
            Values::TimesBy(label, values, of) => {
                for (at, value) in values.iter().enumerate() {
                    self.histogram(name, &format!("{who},{label}=\"{value}\""), of(member, at));
                }
            }
            Values::Info(of) => self.sample(name, who, Some(format_args!("{}", of(member))), 1),
            Values::Each(of) => {
                for (labels, value) in of(member) {
                    self.pause_after_slice().await;
                    self.sample(name, who, Some(format_args!("{labels}")), value);
                }
            }
        }
    }

    fn sample(&mut self, name: &str, who: Member, labels: Option<fmt::Arguments<'_>>, value: impl Display) {
        match (who, labels) {
            (Member::Only, None) => self.line(format_args!("{name} {value}")),
            (Member::Only, Some(labels)) => self.line(format_args!("{name}{{{labels}}} {value}")),
            (_, None) => self.line(format_args!("{name}{{{who}}} {value}")),
            (_, Some(labels)) => self.line(format_args!("{name}{{{who},{labels}}} {value}")),
        }
    }

    fn histogram(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let mut count = 0;
        for (edge, bucket) in BUCKET_EDGES_US.iter().zip(histogram.buckets()) {
            count += bucket.get();
            let edge = *edge as f64 / 1e6;
            self.line(format_args!("{name}_bucket{{{labels},le=\"{edge}\"}} {count}"));
        }
        count += histogram.buckets()[BUCKET_EDGES_US.len()].get();
        self.line(format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {count}"));
        let sum = histogram.sum_seconds();
        self.line(format_args!("{name}_sum{{{labels}}} {sum}"));
        self.line(format_args!("{name}_count{{{labels}}} {count}"));
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        let written = writeln!(self.text, "{line}");
        debug_assert!(written.is_ok(), "writing to a String does not fail");
    }
}
