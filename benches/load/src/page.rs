//! One or more reports as a page that needs nothing but itself.
//!
//! Duty: the JSON of `--json` to HTML: figures beside each other, and plots of latency, rates,
//! memory and CPU. It reads the JSON and not the report, so a run of today and one of last year
//! look alike. Figures that an old run lacks are shown as missing. Pure. All text is escaped: names
//! of files and errors of servers are untrusted.

use std::fmt::Write;

use serde_json::Value;

use crate::html::escape;
use crate::plot::{COLOURS, Line, Plot, Scale, number};
use crate::verdict;

const STYLE: &str = include_str!("page.css");

/// A report, and what it is called.
#[derive(Debug)]
pub(crate) struct Run {
    name: String,
    json: Value,
}

/// Rows of the table of figures: what it is, where it is in the JSON, and its unit.
const FIGURES: &[(&str, &str, &str)] = &[
    ("Messages sent", "/sent", ""),
    ("received", "/received", ""),
    ("lost", "/lost", ""),
    ("away", "/away", ""),
    ("duplicates", "/duplicates", ""),
    ("reordered", "/reordered", ""),
    ("Messages per second", "/messagesPerSecond", "/s"),
    ("Latency p50", "/latencyMicros/p50", "µs"),
    ("p90", "/latencyMicros/p90", "µs"),
    ("p99", "/latencyMicros/p99", "µs"),
    ("p99.9", "/latencyMicros/p999", "µs"),
    ("max", "/latencyMicros/max", "µs"),
    ("Connections ready", "/connections/ready", ""),
    ("failed", "/connections/failed", ""),
    ("dropped", "/connections/dropped", ""),
    ("per second", "/connections/perSecond", "/s"),
    ("Server CPU", "/server/cpuPercent", "% of a core"),
    ("per million messages", "/server/cpuSecondsPerMillion", "s"),
    ("per connect", "/server/connectCpuMicrosPerConnection", "µs"),
    ("memory", "/server/rssBytes", "bytes"),
    ("per connection", "/server/rssBytesPerConnection", "bytes"),
    ("Storm: cut off", "/storm/cut", ""),
    ("50 % back after", "/storm/backSeconds/p50", "s"),
    ("90 %", "/storm/backSeconds/p90", "s"),
    ("99 %", "/storm/backSeconds/p99", "s"),
    ("100 %", "/storm/backSeconds/p100", "s"),
    ("attempts per client", "/storm/attemptsPerClient/mean", ""),
    ("others' p99 before", "/storm/beside/before/p99", "µs"),
    ("others' p99 during", "/storm/beside/during/p99", "µs"),
    ("others' p99 after", "/storm/beside/after/p99", "µs"),
    ("Generator, busiest thread", "/generator/busiestPercent", "% of a core"),
    ("waiting for a CPU", "/generator/starvedPercent", "%"),
    ("late p99", "/generator/lagMicros/p99", "µs"),
];

impl Run {
    /// Reads a report.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn read(name: &str, text: &str) -> Result<Self, String> {
        let json: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if !json["scenario"].is_string() {
            return Err("not a report of shardgate-load: it has no scenario".to_owned());
        }
        Ok(Self {
            name: name.to_owned(),
            json,
        })
    }

    fn series(&self) -> &[Value] {
        self.json["series"].as_array().map_or(&[], Vec::as_slice)
    }

    /// One column of the series, over time.
    fn line(&self, colour: usize, what: &str, key: &str, dashed: bool) -> Line {
        let point = |row: &Value| Some((row["seconds"].as_f64()?, row[key].as_f64()));
        Line {
            name: [&*self.name, what].join(" ").trim_end().to_owned(),
            colour,
            dashed,
            points: self.series().iter().filter_map(point).collect(),
        }
    }

    fn curve(&self, colour: usize) -> Line {
        let points = self.json["latencyCurve"].as_array().map_or(&[][..], Vec::as_slice);
        // The slowest of n messages stands where the next nine would begin.
        let count = self.json["measured"]["received"].as_f64().unwrap_or(1.0).max(1.0);
        let last = 1.0 - 0.5 / count;
        let point = |p: &Value| Some((p["quantile"].as_f64()?.min(last), p["micros"].as_f64()));
        Line {
            name: self.name.clone(),
            colour,
            dashed: false,
            points: points.iter().filter_map(point).collect(),
        }
    }
}

/// The page.
pub(crate) fn write(runs: &[Run]) -> String {
    let mut out = String::new();
    write_page(runs, &mut out).expect("a String takes everything");
    out
}

fn write_page(runs: &[Run], out: &mut String) -> std::fmt::Result {
    let names: Vec<&str> = runs.iter().map(|run| &*run.name).collect();
    let title = escape(&format!("shardgate-load: {}", names.join(", ")));
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style></head><body>\n<h1>{title}</h1>"
    )?;
    write_verdicts(runs, out)?;
    write_figures(runs, out)?;
    writeln!(out, "<section class=\"plots\">")?;
    for plot in plots(runs) {
        out.push_str(&plot.svg());
    }
    writeln!(out, "</section>")?;
    write_configurations(runs, out)?;
    writeln!(out, "</body></html>")
}

/// Whether each run is to be believed.
fn write_verdicts(runs: &[Run], out: &mut String) -> std::fmt::Result {
    writeln!(out, "<ul class=\"verdicts\">")?;
    for (i, run) in runs.iter().enumerate() {
        let ok = run.json["ok"].as_bool().unwrap_or(false);
        let (class, word) = if ok { ("ok", "ok") } else { ("failed", "FAILED") };
        let scenario = run.json["scenario"].as_str().unwrap_or_default();
        write!(
            out,
            "<li class=\"c{}\"><b>{}</b> {}: <span class=\"{class}\">{word}</span>",
            i % COLOURS,
            escape(&run.name),
            escape(scenario)
        )?;
        let limits = run.json.pointer("/generator/limits").and_then(Value::as_array);
        let limits: Vec<&str> = limits.into_iter().flatten().filter_map(Value::as_str).collect();
        let reasons = verdict::reasons(&run.json);
        if !reasons.is_empty() {
            let why = escape(&reasons.join(", "));
            write!(out, " <span class=\"failed\">because of: {why}</span>")?;
        }
        if !limits.is_empty() {
            // It may explain latencies and rates, but no loss.
            let why = escape(&limits.join("; "));
            let word = if ok { "but" } else { "besides" };
            write!(
                out,
                " <span class=\"limit\">{word} the generator was the limit of the figures: {why}</span>"
            )?;
        }
        writeln!(out, "</li>")?;
    }
    writeln!(out, "</ul>")
}

fn write_figures(runs: &[Run], out: &mut String) -> std::fmt::Result {
    write!(out, "<table><thead><tr><th></th>")?;
    for run in runs {
        write!(out, "<th>{}</th>", escape(&run.name))?;
    }
    writeln!(out, "<th></th></tr></thead><tbody>")?;
    for (what, place, unit) in FIGURES {
        let value = |run: &Run| run.json.pointer(place).and_then(Value::as_f64);
        let values: Vec<Option<f64>> = runs.iter().map(value).collect();
        if values.iter().all(Option::is_none) {
            continue;
        }
        write!(out, "<tr><th>{}</th>", escape(what))?;
        for value in &values {
            let shown = value.map_or("–".to_owned(), number);
            let change = match (value, values[0]) {
                (Some(value), Some(first)) if values.len() > 1 && first != 0.0 && *value != first => {
                    format!(" <small>{:+.0} %</small>", (value / first - 1.0) * 100.0)
                }
                _ => String::new(),
            };
            write!(out, "<td>{shown}{change}</td>")?;
        }
        writeln!(out, "<td class=\"unit\">{}</td></tr>", escape(unit))?;
    }
    writeln!(out, "</tbody></table>")
}

fn plots(runs: &[Run]) -> Vec<Plot> {
    // Several columns of one run are several colours; of several runs each has its own.
    let columns = |columns: &[(&str, &str)]| -> Vec<Line> {
        let colour = |run: usize, column: usize| if runs.len() > 1 { run } else { column };
        let lines = runs.iter().enumerate().flat_map(|(i, run)| {
            let line = move |(k, (what, key)): (usize, &(&str, &str))| run.line(colour(i, k), what, key, k > 0);
            columns.iter().enumerate().map(line).collect::<Vec<_>>()
        });
        lines.collect()
    };
    let over_time = |title, y, columns: Vec<Line>| Plot {
        title,
        x: ("seconds", Scale::Linear),
        y,
        lines: columns,
    };
    vec![
        Plot {
            title: "Latency by share of the messages",
            x: ("share that took no longer", Scale::Nines),
            y: ("µs", Scale::Log),
            lines: runs.iter().enumerate().map(|(i, run)| run.curve(i)).collect(),
        },
        over_time(
            "Latency over time",
            ("µs", Scale::Log),
            columns(&[("p50", "p50Micros"), ("p99", "p99Micros")]),
        ),
        over_time(
            "Messages per second",
            ("/s", Scale::Linear),
            columns(&[("received", "receivedPerSecond"), ("sent", "sentPerSecond")]),
        ),
        over_time(
            "Connections",
            ("", Scale::Linear),
            columns(&[("ready", "ready"), ("away", "away")]),
        ),
        over_time(
            "CPU",
            ("% of a core", Scale::Linear),
            columns(&[("server", "serverCpuPercent"), ("generator", "generatorCpuPercent")]),
        ),
        over_time(
            "Memory of the server",
            ("bytes", Scale::Linear),
            columns(&[("", "serverRssBytes")]),
        ),
    ]
}

fn write_configurations(runs: &[Run], out: &mut String) -> std::fmt::Result {
    for run in runs {
        let config = serde_json::to_string_pretty(&run.json["config"]).unwrap_or_default();
        writeln!(
            out,
            "<details><summary>Configuration of {}</summary><pre>{}</pre></details>",
            escape(&run.name),
            escape(&config)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, p99: f64) -> Run {
        let json = serde_json::json!({
            "scenario": "direct", "ok": true, "sent": 5, "latencyMicros": {"p99": p99},
            "latencyCurve": [{"quantile": 0.5, "micros": 10.0}, {"quantile": 1.0, "micros": p99}],
            "series": [{"seconds": 1.0, "receivedPerSecond": 4.0}, {"seconds": 2.0, "receivedPerSecond": null}],
            "generator": {"limits": ["<b>slow</b>"]},
            "config": {"url": "ws://x/</pre><script>alert(1)</script>"},
        });
        Run::read(name, &json.to_string()).unwrap()
    }

    #[test]
    fn a_page_stands_alone_and_nothing_in_it_is_obeyed() {
        let page = write(&[run("<img src=x onerror=alert(1)>", 20.0)]);
        for bad in [
            "<script", "<img", "<b>slow", "http://", "https://", "src=\"", "@import", "url(",
        ] {
            let text = page.replace("src=x", "");
            assert!(!text.contains(bad), "{bad}");
        }
        assert!(page.contains("&lt;b&gt;slow&lt;/b&gt;") && page.contains("&lt;script&gt;"));
    }

    /// A generator that was busy is no reason for a loss.
    #[test]
    fn a_run_that_failed_says_why() {
        let mut failed = run("one", 20.0);
        failed.json["ok"] = false.into();
        failed.json["lost"] = 7.into();
        let page = write(&[failed]);
        let verdict = page.split("<ul class=\"verdicts\">").nth(1).unwrap();
        let (why, limit) = (
            verdict.find("because of: 7 lost"),
            verdict.find("besides the generator"),
        );
        assert!(why.is_some() && why < limit, "{verdict}");
        assert!(!write(&[run("one", 20.0)]).contains("because of"));
    }

    #[test]
    fn runs_stand_beside_each_other() {
        let page = write(&[run("before", 20.0), run("after", 10.0)]);
        assert!(page.contains("<td>20</td><td>10 <small>-50 %</small></td>"), "{page}");
        assert_eq!(page.matches("<svg").count(), 2, "what nobody measured is not drawn");
        assert!(page.contains("before received") && page.contains("after received"));
    }

    #[test]
    fn what_is_no_report_is_refused() {
        assert!(Run::read("x", "{}").unwrap_err().contains("scenario"));
        assert!(Run::read("x", "[").is_err());
    }
}
