//! Line plots with a logarithmic x axis, as SVG.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
/// Margins for the numbers and names of the axes: left, right, top, bottom.
const MARGINS: [f64; 4] = [78.0, 24.0, 44.0, 56.0];
/// Distinguishable with any kind of colour vision: Okabe and Ito, "Color universal design" (2008).
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"];

/// A plot.
#[derive(Debug, Clone)]
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) x_label: &'static str,
    pub(crate) y_label: &'static str,
    pub(crate) series: Vec<PlotSeries>,
}

/// One line with its points in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PlotSeries {
    pub(crate) name: String,
    /// Pairs of x and y; x is above 0.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Maps values to coordinates.
struct Axes {
    /// Natural logarithms of the smallest and the largest x.
    x: (f64, f64),
    /// The largest y.
    top: f64,
}

impl Axes {
    fn x(&self, x: f64) -> f64 {
        let (first, last) = self.x;
        MARGINS[0] + (x.ln() - first) / (last - first) * (WIDTH - MARGINS[0] - MARGINS[1])
    }

    fn y(&self, y: f64) -> f64 {
        HEIGHT - MARGINS[3] - y / self.top * (HEIGHT - MARGINS[2] - MARGINS[3])
    }

    /// Distance between grid lines: 1, 2 or 5 times a power of ten, so that there are four to nine lines.
    fn step(&self) -> f64 {
        let power = 10_f64.powf((self.top / 4.0).log10().floor());
        let fits = |times: &f64| self.top / (times * power) >= 4.0;
        [5.0, 2.0, 1.0].into_iter().find(fits).unwrap_or(1.0) * power
    }
}

impl Plot {
    /// The plot as an SVG document; `None` if there are no points.
    pub(crate) fn svg(&self) -> Option<String> {
        let mut stops: Vec<f64> = self.points().map(|(x, _)| x).collect();
        stops.sort_by(f64::total_cmp);
        stops.dedup();
        let (first, last) = (stops.first()?, stops.last()?);
        let top = self.points().map(|(_, y)| y).fold(0.0, f64::max);
        let axes = Axes {
            x: ((first / 1.15).ln(), (last * 1.15).ln()),
            top: if top > 0.0 { top * 1.12 } else { 1.0 },
        };
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        // Writing to a string can't fail.
        let _ = self.draw(&mut svg, &axes, &stops);
        svg.push_str("</svg>\n");
        Some(svg)
    }

    fn draw(&self, svg: &mut String, axes: &Axes, stops: &[f64]) -> std::fmt::Result {
        let (left, right, bottom) = (MARGINS[0], WIDTH - MARGINS[1], HEIGHT - MARGINS[3]);
        let middle = (left + right) / 2.0;
        text(svg, (middle, 26.0), "text-anchor=\"middle\" font-size=\"16\"", &self.title)?;
        text(svg, (middle, HEIGHT - 14.0), "text-anchor=\"middle\"", self.x_label)?;
        let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 18 {})\"", HEIGHT / 2.0);
        text(svg, (18.0, HEIGHT / 2.0), &turned, self.y_label)?;
        let step = axes.step();
        for line in 0..=(axes.top / step) as u32 {
            let (value, y) = (f64::from(line) * step, axes.y(f64::from(line) * step));
            writeln!(svg, "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/>")?;
            text(svg, (left - 8.0, y + 4.0), "text-anchor=\"end\"", &value.to_string())?;
        }
        writeln!(svg, "<path d=\"M{left} {bottom}H{right}\" stroke=\"black\"/>")?;
        for stop in stops {
            text(svg, (axes.x(*stop), bottom + 18.0), "text-anchor=\"middle\"", &stop.to_string())?;
        }
        for (number, (series, colour)) in self.series.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let places: Vec<(f64, f64)> =
                series.points.iter().map(|&(x, y)| (axes.x(x), axes.y(y))).collect();
            let line: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let points = line.join(" ");
            writeln!(
                svg,
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
            )?;
            for (x, y) in places {
                writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>")?;
            }
            let y = MARGINS[2] + 12.0 + 18.0 * number as f64;
            writeln!(svg, "<path d=\"M{} {y}h18\" stroke=\"{colour}\" stroke-width=\"2\"/>", left + 10.0)?;
            text(svg, (left + 34.0, y + 4.0), "", &series.name)?;
        }
        Ok(())
    }

    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.series.iter().flat_map(|series| &series.points).copied()
    }
}

/// Writes `content`, escaped, at a position.
fn text(svg: &mut String, (x, y): (f64, f64), attributes: &str, content: &str) -> std::fmt::Result {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{content}</text>")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<(f64, f64)>) -> Plot {
        let series = vec![
            PlotSeries { name: "ours".into(), points: points.clone() },
            PlotSeries {
                name: "theirs".into(),
                points: points.into_iter().map(|(x, y)| (x, y / 2.0)).collect(),
            },
        ];
        Plot { title: "Decode <tok/s>".into(), x_label: "streams", y_label: "tok/s", series }
    }

    #[test]
    fn a_plot_shows_names_axes_and_every_x_that_was_measured() {
        let svg = plot(vec![(1.0, 90.0), (8.0, 300.0), (128.0, 400.0)]).svg().unwrap();
        assert!(svg.starts_with("<svg"), "{svg}");
        for text in ["ours", "theirs", "streams", "Decode &lt;tok/s&gt;", ">1<", ">8<", ">128<"] {
            assert!(svg.contains(text), "{text:?} is missing in {svg}");
        }
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn one_point_is_enough_but_not_none() {
        assert!(plot(vec![(8.0, 0.0)]).svg().is_some());
        assert!(plot(vec![]).svg().is_none());
    }
}
