//! Points and lines over two axes.

use std::fmt::Write;

use super::{axis::Axis, escape};

/// A plot's size in its own units; a page scales it to its column.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 240.0;
/// Margins for the labels of the axes; larger at the left if a number is long.
const LEFT: f64 = 57.0;
/// Width of the side label with its gaps, and of a digit.
const LABEL: f64 = 19.0;
const DIGIT: f64 = 6.3;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 44.0;

/// Number of colours that a page defines.
pub(crate) const COLOURS: usize = 8;
/// Number of dashes that a page defines.
const DASHES: usize = 8;
/// Shapes of markers.
const MARKERS: usize = 6;

/// A plot of some series.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plot {
    /// Description of the plot, for screen readers.
    pub(crate) title: String,
    /// Label of the horizontal axis.
    pub(crate) x_label: String,
    /// Label of the vertical axis.
    pub(crate) y_label: String,
    /// Whether the horizontal axis is logarithmic.
    pub(crate) x_log: bool,
    /// Whether the vertical axis is logarithmic.
    pub(crate) y_log: bool,
    /// The series, the first below the others.
    pub(crate) series: Vec<Series>,
}

/// A series of points.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    /// Its name.
    pub(crate) name: String,
    /// Index of its colour.
    pub(crate) colour: usize,
    /// Index of its dash; colour and dash determine its marker.
    pub(crate) dash: usize,
    /// Whether it was published by others: its markers are hollow.
    pub(crate) hollow: bool,
    /// Whether its points have markers.
    pub(crate) markers: bool,
    /// From left to right.
    pub(crate) points: Vec<Point>,
}

/// A point.
#[derive(Clone, Debug, Default)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Half the height of its error bar.
    pub(crate) error: Option<f64>,
    /// Description, shown as a tooltip.
    pub(crate) label: String,
}

impl Plot {
    /// Whether the plot is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.series.iter().all(|series| series.points.is_empty())
    }

    /// The plot, with `id` for the elements that it refers to.
    pub(crate) fn to_svg(&self, id: &str) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::new(points().map(|point| point.x), self.x_log, if self.x_log { 8 } else { 5 });
        let ends = |point: &Point| {
            let error = point.error.unwrap_or(0.0);
            // The point itself too: on a logarithmic axis the bar's lower end may have no position.
            [point.y - error, point.y, point.y + error]
        };
        let y = Axis::new(points().flat_map(ends), self.y_log, 5);
        let frame = Frame::new(x, y);
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"{id}\">\
             <title id=\"{id}\">{}</title>",
            escape(&self.title)
        );
        frame.draw(&mut out, &self.x_label, &self.y_label);
        for series in &self.series {
            frame.draw_series(&mut out, series);
        }
        out.push_str("</svg>");
        out
    }
}

/// The area of the points.
struct Frame {
    x: Axis,
    y: Axis,
    left: f64,
}

impl Frame {
    fn new(x: Axis, y: Axis) -> Self {
        let longest = y.ticks.iter().map(|(_, text)| text.len()).max().unwrap_or(0);
        // The points get at least half of the plot.
        let left = (LABEL + DIGIT * longest as f64).clamp(LEFT, WIDTH / 2.0);
        Self { x, y, left }
    }

    fn place(&self, x: f64, y: f64) -> Option<(f64, f64)> {
        let (x, y) = self.x.place(x).zip(self.y.place(y))?;
        Some((self.left + x * (WIDTH - self.left - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)))
    }

    /// Grid lines, numbers and labels.
    fn draw(&self, out: &mut String, x_label: &str, y_label: &str) {
        let (left, right, bottom) = (self.left, WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, text) in &self.y.ticks {
            let Some(place) = self.y.place(*value) else { continue };
            let y = bottom - place * (bottom - TOP);
            // Writing to a string cannot fail; so below.
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{left:.1} {y:.1}H{right}\"/>\
                 <text class=\"num\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                left - 5.0,
                y + 3.5
            );
        }
        for (value, text) in &self.x.ticks {
            let Some(place) = self.x.place(*value) else { continue };
            let x = left + place * (right - left);
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{x:.1} {TOP}V{bottom}\"/>\
                 <text class=\"num\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                bottom + 17.0
            );
        }
        let (centre, middle) = ((left + right) / 2.0, (TOP + bottom) / 2.0);
        let _ = write!(
            out,
            "<path class=\"axis\" d=\"M{left:.1} {TOP}V{bottom}H{right}\"/>\
             <text x=\"{centre:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(11 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 7.0,
            escape(x_label),
            escape(y_label)
        );
    }

    fn draw_series(&self, out: &mut String, series: &Series) {
        let places: Vec<(f64, f64, &Point)> = series
            .points
            .iter()
            .filter_map(|point| self.place(point.x, point.y).map(|(x, y)| (x, y, point)))
            .collect();
        let _ = write!(out, "<g class=\"s{}\">", series.colour % COLOURS);
        if places.len() > 1 {
            let line: Vec<String> = places.iter().map(|(x, y, _)| format!("{x:.1} {y:.1}")).collect();
            let _ = write!(out, "<path class=\"line d{}\" d=\"M{}\"/>", series.dash % DASHES, line.join("L"));
        }
        for (x, y, point) in &places {
            if let Some(error) = point.error.filter(|error| *error > 0.0)
                && let Some((_, high)) = self.place(point.x, point.y + error)
            {
                // A logarithmic axis has no position for values that are not positive: the bar ends at the
                // frame.
                let low = self.place(point.x, point.y - error).map_or(HEIGHT - BOTTOM, |(_, low)| low);
                let _ = write!(out, "<path class=\"line\" d=\"M{x:.1} {high:.1}V{low:.1}\"/>");
            }
            if series.markers || places.len() == 1 {
                let title = format!("<title>{}</title>", escape(&point.label));
                out.push_str(&marker(series, *x, *y, &title));
            }
        }
        out.push_str("</g>");
    }
}

/// A marker of the series' shape.
fn marker(series: &Series, x: f64, y: f64, inside: &str) -> String {
    let shape = match (series.colour + series.dash) % MARKERS {
        0 => format!("M{} {y}a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", x - 4.0),
        1 => format!("M{} {}h7v7h-7z", x - 3.5, y - 3.5),
        2 => format!("M{x} {}l4.5 8h-9z", y - 5.0),
        3 => format!("M{x} {}l5 5l-5 5l-5-5z", y - 5.0),
        4 => format!("M{x} {}l4.5-8h-9z", y + 5.0),
        _ => format!("M{} {}h3v-3h3v3h3v3h-3v3h-3v-3h-3z", x - 4.5, y - 1.5),
    };
    // When a colour's shapes are used up, they repeat as hollow ones.
    let is_hollow = series.hollow || series.dash / MARKERS % 2 == 1;
    let class = if is_hollow { "hollow" } else { "dot" };
    format!("<path class=\"{class}\" d=\"{}\">{inside}</path>", shorten(&shape))
}

/// Path data with one digit after each point.
fn shorten(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut number = String::new();
    let flush = |number: &mut String, out: &mut String| {
        match number.parse::<f64>() {
            Ok(value) => out.push_str(&((value * 10.0).round() / 10.0).to_string()),
            Err(_) => out.push_str(number),
        }
        number.clear();
    };
    for c in path.chars() {
        if c.is_ascii_digit() || c == '.' || (c == '-' && number.is_empty()) {
            number.push(c);
        } else {
            flush(&mut number, &mut out);
            if c == '-' { number.push(c) } else { out.push(c) }
        }
    }
    flush(&mut number, &mut out);
    out
}

/// The sample of a series for a legend.
pub(crate) fn swatch(series: &Series) -> String {
    let is_point = series.points.len() == 1;
    let line = if is_point {
        String::new()
    } else {
        format!("<path class=\"line d{}\" d=\"M1 7H27\"/>", series.dash % DASHES)
    };
    let marker = if series.markers || is_point { marker(series, 14.0, 7.0, "") } else { String::new() };
    format!(
        "<svg class=\"swatch\" viewBox=\"0 0 28 14\" aria-hidden=\"true\"><g class=\"s{}\">{line}{marker}</g></svg>",
        series.colour % COLOURS
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn point(x: f64, y: f64) -> Point {
        Point { x, y, label: format!("<{x}>"), ..Point::default() }
    }

    fn plot(points: Vec<Point>) -> Plot {
        let series = vec![Series { name: "a".into(), markers: true, points, ..Series::default() }];
        Plot { title: "a & b".into(), series, ..Plot::default() }
    }

    #[test]
    fn corners_lie_on_the_frame() {
        let svg = plot(vec![point(0.0, 0.0), point(10.0, 10.0)]).to_svg("t");
        assert!(svg.contains("class=\"line d0\" d=\"M57.0 196.0L346.0 10.0\""), "{svg}");
        assert!(
            svg.contains("<title id=\"t\">a &amp; b</title>") && svg.contains("<title>&lt;10&gt;</title>"),
            "{svg}"
        );
        assert_eq!(svg.matches("class=\"dot\"").count(), 2);
    }

    #[test]
    fn what_has_no_place_is_not_drawn() {
        let plot =
            Plot { x_log: true, ..plot(vec![point(0.0, 1.0), point(10.0, f64::NAN), point(10.0, 2.0)]) };
        let svg = plot.to_svg("t");
        assert_eq!(svg.matches("class=\"dot\"").count(), 1, "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn an_empty_plot_is_a_frame() {
        assert!(Plot::default().is_empty());
        assert!(Plot::default().to_svg("t").ends_with("</svg>"));
    }

    #[test]
    fn error_bars_have_room() {
        let mut high = point(1.0, 10.0);
        high.error = Some(100.0);
        let svg = plot(vec![high]).to_svg("t");
        assert!(svg.contains(">-100<") && svg.contains(">150<"), "{svg}");
    }

    #[test]
    fn an_error_bar_without_a_lower_end_is_cut_at_the_frame() {
        let mut low = point(1.0, 5.0);
        low.error = Some(6.0);
        let svg = Plot { y_log: true, ..plot(vec![low]) }.to_svg("t");
        let bar = svg.split("class=\"line\" d=\"").nth(1).unwrap();
        assert!(bar.split('"').next().unwrap().ends_with("V196.0"), "{svg}");
        // The point lies in the frame, too.
        let axis = Axis::new([5.0, 11.0].into_iter(), true, 5);
        assert!(axis.ticks.iter().all(|(_, text)| svg.contains(&format!(">{text}<"))), "{svg}");
    }

    #[test]
    fn long_numbers_have_room() {
        let svg = plot(vec![point(0.0, -0.0007), point(1.0, 0.0001)]).to_svg("t");
        assert!(svg.contains(">-0.0008<") && svg.contains("<path class=\"axis\" d=\"M63.1 10V"), "{svg}");
        assert!(svg.contains("text class=\"num\" x=\"58.1\""), "{svg}");
        let svg = plot(vec![point(0.0, 0.0), point(1.0, 1e6)]).to_svg("t");
        assert!(svg.contains(">1M<") && svg.contains("<path class=\"axis\" d=\"M57.0 10V"), "{svg}");
    }

    #[test]
    fn points_of_one_colour_differ_by_their_markers() {
        let series = |dash| Series { colour: 3, dash, points: vec![point(1.0, 1.0)], ..Series::default() };
        let looks: BTreeSet<String> = (0..2 * MARKERS).map(|dash| swatch(&series(dash))).collect();
        assert_eq!(looks.len(), 2 * MARKERS);
        assert!(looks.iter().all(|look| !look.contains("line")), "{looks:?}");
    }

    #[test]
    fn path_data_is_short() {
        assert_eq!(shorten("M1.26 -0.04a4 4 0 1 0-8 0z"), "M1.3 -0a4 4 0 1 0-8 0z");
        assert_eq!(shorten("M10.06-3.333"), "M10.1-3.3");
    }
}
