//! Lines over a logarithmic axis, as SVG.

use std::fmt::Display;

use plotters::prelude::*;

const SIZE: (u32, u32) = (720, 440);
/// Told apart with any kind of colour vision: Okabe and Ito, "Color universal design" (2008).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

/// A drawing.
#[derive(Debug, Clone)]
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) x_label: &'static str,
    pub(crate) y_label: &'static str,
    pub(crate) series: Vec<Series>,
}

/// One line, its points in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// `x` above 0.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A plot can't be drawn.
#[derive(Debug, thiserror::Error)]
#[error("the plot '{title}' can't be drawn: {reason}")]
pub(crate) struct PlotError {
    title: String,
    reason: String,
}

impl Plot {
    /// The drawing as an SVG document; `None` of no points.
    pub(crate) fn svg(&self) -> Result<Option<String>, PlotError> {
        let failed =
            |reason: &dyn Display| PlotError { title: self.title.clone(), reason: reason.to_string() };
        let mut document = String::new();
        let drawn = self.draw(&mut document).map_err(|error| failed(&error))?;
        Ok(drawn.then_some(document))
    }

    fn draw(&self, document: &mut String) -> Result<bool, DrawingAreaErrorKind<std::io::Error>> {
        let mut stops: Vec<f64> = self.points().map(|(x, _)| x).collect();
        stops.sort_by(f64::total_cmp);
        stops.dedup();
        let (Some(first), Some(last)) = (stops.first(), stops.last()) else { return Ok(false) };
        let width = (first / 1.15)..(last * 1.15);
        let top = self.points().map(|(_, y)| y).fold(0.0, f64::max);
        let root = SVGBackend::with_string(document, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, ("sans-serif", 17))
            .margin(14)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(
                width.log_scale().with_key_points(stops.clone()),
                0.0..if top > 0.0 { top * 1.12 } else { 1.0 },
            )?;
        chart
            .configure_mesh()
            .x_desc(self.x_label)
            .y_desc(self.y_label)
            .x_labels(stops.len())
            .x_label_formatter(&|x| format!("{x}"))
            .y_label_formatter(&|y| format!("{y}"))
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.12))
            .draw()?;
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(series.points.iter().copied(), style).point_size(4))?
                .label(&series.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        root.present()?;
        drop(chart);
        drop(root);
        Ok(true)
    }

    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.series.iter().flat_map(|series| &series.points).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<(f64, f64)>) -> Plot {
        let series = vec![
            Series { name: "ours".into(), points: points.clone() },
            Series { name: "theirs".into(), points: points.into_iter().map(|(x, y)| (x, y / 2.0)).collect() },
        ];
        Plot { title: "Decode <tok/s>".into(), x_label: "streams", y_label: "tok/s", series }
    }

    #[test]
    fn a_plot_shows_names_axes_and_every_x_that_was_measured() {
        let svg = plot(vec![(1.0, 90.0), (8.0, 300.0), (128.0, 400.0)]).svg().unwrap().unwrap();
        assert!(svg.starts_with("<svg"), "{svg}");
        for text in ["ours", "theirs", "streams", "Decode &lt;tok/s&gt;", "\n1\n", "\n8\n", "\n128\n"] {
            assert!(svg.contains(text), "{text:?} is missing in {svg}");
        }
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn one_point_is_enough_and_none_is_no_plot() {
        assert!(plot(vec![(8.0, 0.0)]).svg().unwrap().is_some());
        assert!(plot(vec![]).svg().unwrap().is_none());
    }
}
