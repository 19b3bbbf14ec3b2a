//! Lines in a frame, as SVG that stands in a page.
//!
//! Duty: points to a drawing with axes, ticks and a title for each line. Pure. Colours are classes,
//! which the page's style gives a colour by day and by night.

use std::fmt::Write;

use crate::html::escape;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;

/// As many colours as the page knows.
pub(crate) const COLOURS: usize = 6;

/// One line: its name, the number of its colour, and its points; those without a value are gaps.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) colour: usize,
    /// Drawn in dashes: the same run, another quantity.
    pub(crate) dashed: bool,
    pub(crate) points: Vec<(f64, Option<f64>)>,
}

/// The data of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From 0.
    Linear,
    /// By powers of ten.
    Log,
    /// Shares of 1, the nearer to 1 the wider: each nine has the same room.
    Nines,
}

#[derive(Debug)]
pub(crate) struct Plot {
    pub(crate) title: &'static str,
    pub(crate) x: (&'static str, Scale),
    pub(crate) y: (&'static str, Scale),
    pub(crate) lines: Vec<Line>,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.max(f64::MIN_POSITIVE).log10(),
            // Beyond a millionth nothing can be told apart.
            Self::Nines => -(1.0 - value).max(1e-7).log10(),
        }
    }

    /// Ticks between two values, with their texts.
    fn ticks(self, from: f64, to: f64) -> Vec<(f64, String)> {
        match self {
            Self::Linear => {
                let raw = (to - from) / 5.0;
                let power = 10f64.powf(raw.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0]
                    .map(|n| n * power)
                    .into_iter()
                    .find(|s| *s >= raw)
                    .unwrap_or(raw);
                let first = (from / step).ceil() as i64;
                let last = (to / step).floor() as i64;
                (first..=last)
                    .map(|n| (n as f64 * step, number(n as f64 * step)))
                    .collect()
            }
            Self::Log => {
                let powers = from.log10().floor() as i32..=to.log10().ceil() as i32;
                let values = powers.map(|power| 10f64.powi(power));
                values.map(|v| (v, number(v))).collect()
            }
            Self::Nines => [0.0, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999]
                .map(|q| (q, format!("{} %", (q * 1e8f64).round() / 1e6)))
                .to_vec(),
        }
    }
}

/// A number for people: 1200000 is 1.2M.
pub(crate) fn number(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = if scaled.abs() >= 100.0 { 0 } else { 2 };
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{unit}")
}

impl Plot {
    /// The drawing, or a sentence if there is nothing to draw.
    pub(crate) fn svg(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("a String takes everything");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let shown = |(x, y): &(f64, Option<f64>)| {
            let y = y.filter(|y| y.is_finite() && (self.y.1 != Scale::Log || *y > 0.0));
            y.filter(|_| x.is_finite()).map(|y| (*x, y))
        };
        let all: Vec<(f64, f64)> = self
            .lines
            .iter()
            .flat_map(|line| line.points.iter().filter_map(shown))
            .collect();
        writeln!(out, "<figure><figcaption>{}</figcaption>", escape(self.title))?;
        if all.is_empty() {
            return writeln!(out, "<p class=\"none\">Nothing measured.</p></figure>");
        }
        let range = |values: &mut dyn Iterator<Item = f64>, scale: Scale| {
            let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
            match scale {
                Scale::Linear => (low.min(0.0), high.max(low.min(0.0) + 1e-9) * 1.05),
                Scale::Log => (10f64.powf(low.log10().floor()), 10f64.powf(high.log10().floor() + 1.0)),
                Scale::Nines => (low, high.min(1.0)),
            }
        };
        let (x_from, x_to) = range(&mut all.iter().map(|(x, _)| *x), self.x.1);
        let (y_from, y_to) = range(&mut all.iter().map(|(_, y)| *y), self.y.1);
        let part = |value: f64, from: f64, to: f64, scale: Scale| {
            let (value, from, to) = (scale.place(value), scale.place(from), scale.place(to));
            (value - from) / (to - from).max(1e-12)
        };
        let at_x = |x: f64| LEFT + part(x, x_from, x_to, self.x.1) * (WIDTH - LEFT - RIGHT);
        let at_y = |y: f64| HEIGHT - BOTTOM - part(y, y_from, y_to, self.y.1) * (HEIGHT - TOP - BOTTOM);
        writeln!(
            out,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(self.title)
        )?;
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for (value, text) in self.y.1.ticks(y_from, y_to) {
            let y = at_y(value);
            if (TOP - 1.0..=bottom + 1.0).contains(&y) {
                writeln!(out, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>")?;
                writeln!(
                    out,
                    "<text class=\"y\" x=\"{}\" y=\"{:.1}\">{text}</text>",
                    LEFT - 6.0,
                    y + 4.0
                )?;
            }
        }
        for (value, text) in self.x.1.ticks(x_from, x_to) {
            let x = at_x(value);
            if (LEFT - 1.0..=right + 1.0).contains(&x) {
                writeln!(out, "<path class=\"grid\" d=\"M{x:.1} {TOP}V{bottom}\"/>")?;
                writeln!(
                    out,
                    "<text class=\"x\" x=\"{x:.1}\" y=\"{}\">{text}</text>",
                    bottom + 16.0
                )?;
            }
        }
        let middle = (LEFT + right) / 2.0;
        writeln!(
            out,
            "<text class=\"x axis\" x=\"{middle}\" y=\"{}\">{}</text>",
            HEIGHT - 6.0,
            escape(self.x.0)
        )?;
        writeln!(out, "<text class=\"axis\" x=\"4\" y=\"11\">{}</text>", escape(self.y.0))?;
        for line in &self.lines {
            let dashes = if line.dashed { " dashed" } else { "" };
            let mut path = String::new();
            let mut pen_down = false;
            for point in &line.points {
                match shown(point) {
                    Some((x, y)) => {
                        let command = if pen_down { 'L' } else { 'M' };
                        write!(path, "{command}{:.1} {:.1}", at_x(x), at_y(y))?;
                        if !pen_down {
                            // A point that stays alone is a dot.
                            path.push_str("h0");
                        }
                        pen_down = true;
                    }
                    None => pen_down = false,
                }
            }
            writeln!(
                out,
                "<path class=\"line c{}{dashes}\" d=\"{path}\"><title>{}</title></path>",
                line.colour % COLOURS,
                escape(&line.name)
            )?;
        }
        writeln!(out, "</svg><ul class=\"legend\">")?;
        for line in &self.lines {
            let dashes = if line.dashed { " dashed" } else { "" };
            let colour = line.colour % COLOURS;
            writeln!(out, "<li class=\"c{colour}{dashes}\">{}</li>", escape(&line.name))?;
        }
        writeln!(out, "</ul></figure>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<(f64, Option<f64>)>, y: Scale) -> String {
        let line = Line {
            name: "a < b".to_owned(),
            colour: 7,
            dashed: false,
            points,
        };
        Plot {
            title: "t & u",
            x: ("seconds", Scale::Linear),
            y: ("micros", y),
            lines: vec![line],
        }
        .svg()
    }

    #[test]
    fn a_gap_is_a_gap() {
        let svg = plot(
            vec![(0.0, Some(1.0)), (1.0, Some(2.0)), (2.0, None), (3.0, Some(4.0))],
            Scale::Linear,
        );
        let path = svg.lines().find(|line| line.contains("class=\"line")).unwrap();
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (2, 1), "{path}");
        assert!(svg.contains("a &lt; b") && svg.contains("t &amp; u") && svg.contains("c1"));
    }

    #[test]
    fn everything_is_inside_and_finite() {
        for y in [Scale::Linear, Scale::Log] {
            for points in [
                vec![(0.0, Some(0.0))],
                vec![(5.0, Some(7.0)), (5.0, Some(7.0))],
                vec![(0.0, Some(1e-3)), (1.0, Some(1e12)), (2.0, Some(f64::NAN))],
            ] {
                let svg = plot(points, y);
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
        assert!(plot(vec![(0.0, None)], Scale::Linear).contains("Nothing measured"));
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (100.0, "100"),
            (1200.0, "1200"),
            (12_000.0, "12k"),
            (1.5e6, "1.5M"),
            (2e9, "2G"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
