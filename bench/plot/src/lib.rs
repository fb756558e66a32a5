//! Plots of figures, as SVG files that a page can show: lines over a number that doubles, and bars side by side.
//!
//! The same figures make the same file, byte by byte, so that a plot in the repository changes with its figures only.

use plotters::backend::SVGBackend;
use plotters::coord::Shift;
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Pixels of a panel.
const PANEL: (u32, u32) = (520, 300);
const TITLE: u32 = 64;
const FONT: &str = "sans-serif";
/// They differ in lightness as well, for those who see no colours.
const COLOURS: [RGBColor; 5] = [
    RGBColor(0x1b, 0x4f, 0x8a),
    RGBColor(0xd9, 0x6b, 0x0b),
    RGBColor(0x4a, 0xa5, 0x64),
    RGBColor(0x8a, 0x3f, 0x8f),
    RGBColor(0x7b, 0x87, 0x94),
];
/// Axes end somewhat beyond the figures.
const MARGIN: f64 = 1.25;

/// What was measured of one thing, over a number such as that of nodes.
#[derive(Debug, Clone)]
pub struct Series {
    pub name: String,
    /// Both numbers are above 0: the axes are logarithmic.
    pub points: Vec<(f64, f64)>,
}

/// One panel of a plot.
#[derive(Debug, Clone)]
pub struct Panel {
    /// With the unit.
    pub title: String,
    pub series: Vec<Series>,
}

/// Bars of one thing, one for each side.
#[derive(Debug, Clone)]
pub struct Bars {
    pub name: String,
    pub values: Vec<f64>,
}

/// A plot that cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PlotError(String);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Panels, two in a row, each with all its series over the same numbers, which are marked below.
///
/// # Errors
/// When a panel has nothing to show, or a number that is not above 0.
pub fn lines(title: &str, below: &str, panels: &[Panel]) -> Result<String, PlotError> {
    for panel in panels {
        let mut points = panel.series.iter().flat_map(|series| &series.points);
        if panel.series.iter().all(|series| series.points.is_empty()) {
            return Err(PlotError(format!("{}: nothing to show", panel.title)));
        }
        if let Some((x, y)) = points.find(|(x, y)| *x <= 0.0 || *y <= 0.0) {
            let what = format!("{}: {y} at {x} has no logarithm", panel.title);
            return Err(PlotError(what));
        }
    }
    let (columns, rows) = (panels.len().min(2), panels.len().div_ceil(2));
    let names = panels.first().map_or(&[][..], |panel| &panel.series);
    let names: Vec<&str> = names.iter().map(|series| series.name.as_str()).collect();
    page(title, &names, (columns, rows), |areas| {
        for (area, panel) in areas.iter().zip(panels) {
            draw_lines(area, below, panel)?;
        }
        Ok(())
    })
}

/// Groups of bars; `sides` says what the bars of each group are.
///
/// # Errors
/// When there is nothing to show, or a group has not a bar for each side.
pub fn bars(title: &str, unit: &str, sides: &[&str], groups: &[Bars]) -> Result<String, PlotError> {
    if groups.is_empty() {
        return Err(PlotError(format!("{title}: nothing to show")));
    }
    if let Some(group) = groups
        .iter()
        .find(|group| group.values.len() != sides.len())
    {
        let what = format!("{title}: {} has {} bars", group.name, group.values.len());
        return Err(PlotError(what));
    }
    page(title, sides, (2, 1), |areas| draw_bars(areas, unit, groups))
}

fn page(
    title: &str,
    names: &[&str],
    (columns, rows): (usize, usize),
    draw: impl FnOnce(&[Area<'_>]) -> Drawn,
) -> Result<String, PlotError> {
    let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32 + TITLE);
    let mut text = String::new();
    let paint = || {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, body) = root.split_vertically(TITLE);
        draw_head(&head, title, names)?;
        draw(&body.split_evenly((rows, columns)))?;
        root.present()?;
        Drawn::Ok(())
    };
    paint().map_err(|error| PlotError(format!("{title}: {error}")))?;
    Ok(text)
}

fn draw_head(area: &Area<'_>, title: &str, names: &[&str]) -> Drawn {
    area.draw(&Text::new(
        title.to_owned(),
        (16, 10),
        (FONT, 20).into_font(),
    ))?;
    let mut x = 16;
    for (name, colour) in names.iter().zip(COLOURS.iter().cycle()) {
        area.draw(&Rectangle::new([(x, 44), (x + 22, 50)], colour.filled()))?;
        area.draw(&Text::new(
            (*name).to_owned(),
            (x + 28, 40),
            (FONT, 14).into_font(),
        ))?;
        // No font is asked how wide it is: a viewer has its own.
        x += 52 + 8 * name.chars().count() as i32;
    }
    Ok(())
}

fn draw_lines(area: &Area<'_>, below: &str, panel: &Panel) -> Drawn {
    let points = || panel.series.iter().flat_map(|series| &series.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let least = points().map(of).fold(f64::INFINITY, f64::min);
        let most = points().map(of).fold(f64::MIN_POSITIVE, f64::max);
        (least, most)
    };
    let ((left, right), (low, high)) = (range(|point| point.0), range(|point| point.1));
    // A line that stays where it is shows best between round numbers around it.
    let low = 10f64.powf((low / MARGIN).log10().floor());
    let high = 10f64.powf((high * MARGIN).log10().ceil());
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, 15))
        .margin(8)
        .margin_right(24)
        .x_label_area_size(40)
        .y_label_area_size(58)
        .build_cartesian_2d(
            (left..right * 1.0001).log_scale().base(2.0),
            (low..high).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc(below)
        .x_labels(12)
        .x_label_formatter(&|x| number(*x))
        .y_label_formatter(&|y| number(*y))
        .y_max_light_lines(1)
        .x_max_light_lines(1)
        .light_line_style(TRANSPARENT)
        .label_style((FONT, 12))
        .draw()?;
    for (series, colour) in panel.series.iter().zip(COLOURS.iter().cycle()) {
        let points = || series.points.iter().copied();
        chart.draw_series(LineSeries::new(points(), colour.stroke_width(2)))?;
        chart.draw_series(points().map(|at| Circle::new(at, 3, colour.filled())))?;
    }
    Ok(())
}

/// Names to the left of bars that lie: they are longer than bars are wide.
fn draw_bars(areas: &[Area<'_>], unit: &str, groups: &[Bars]) -> Drawn {
    let [names, plot] = areas else {
        unreachable!("a row of two")
    };
    let values = groups.iter().flat_map(|group| &group.values);
    let most = values.copied().fold(f64::MIN_POSITIVE, f64::max);
    let (height, width) = (i32::try_from(PANEL.1)?, f64::from(PANEL.0) - 110.0);
    let group_height = (height - 40) / i32::try_from(groups.len())?;
    for (index, group) in (0..).zip(groups) {
        let top = index * group_height;
        let right = i32::try_from(PANEL.0)? - 12;
        let style = (FONT, 14).into_font().into_text_style(names);
        let style = style.pos(Pos::new(HPos::Right, VPos::Center));
        let middle = (right, top + group_height / 2);
        names.draw(&Text::new(group.name.clone(), middle, style))?;
        let bars = i32::try_from(group.values.len())?;
        let bar_height = (group_height - 8) / bars;
        for (side, (value, colour)) in (0..).zip(group.values.iter().zip(COLOURS.iter().cycle())) {
            let (top, end) = (top + 4 + side * bar_height, (value / most * width) as i32);
            let corners = [(0, top), (end, top + bar_height - 2)];
            plot.draw(&Rectangle::new(corners, colour.filled()))?;
            let style = (FONT, 12).into_font().into_text_style(plot);
            let style = style.pos(Pos::new(HPos::Left, VPos::Center));
            let at = (end + 6, top + bar_height / 2);
            plot.draw(&Text::new(number(*value), at, style))?;
        }
    }
    let style = (FONT, 12).into_font().into_text_style(plot);
    plot.draw(&Text::new(unit.to_owned(), (0, height - 30), style))?;
    Ok(())
}

/// Three digits that mean something, and no zeros behind them.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value => {
            let digits = if value >= 10.0 { 1 } else { 2 };
            let text = format!("{value:.digits$}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(points: &[(f64, f64)]) -> Panel {
        Panel {
            title: "messages <per> fault".into(),
            series: vec![Series {
                name: "neighbours".into(),
                points: points.to_vec(),
            }],
        }
    }

    #[test]
    fn lines_are_the_same_each_time() {
        let panels = [
            panel(&[(2.0, 3.5), (4.0, 3.6), (1024.0, 3.7)]),
            panel(&[(2.0, 1.0)]),
        ];
        let plot = || lines("a plot", "nodes", &panels).expect("drawable");
        let text = plot();
        assert_eq!(text, plot());
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
        for shown in ["a plot", "nodes", "neighbours", "1024", "&lt;per&gt;"] {
            assert!(text.contains(shown), "{shown}");
        }
        assert_eq!(text.matches("<circle").count(), 4, "a point each");
    }

    #[test]
    fn bars_are_as_long_as_they_say() {
        let groups =
            [("messages", [200.0, 100.0]), ("stencil", [50.0, 20.0])].map(|(name, values)| Bars {
                name: name.into(),
                values: values.to_vec(),
            });
        let text = bars("faults", "faults a run", &["off", "on"], &groups).expect("drawable");
        assert!(
            text.contains("messages") && text.contains(">\n200\n<"),
            "{text}"
        );
        let width = |line: &str| -> f64 {
            let (_, rest) = line.split_once("width=\"").expect("a rectangle");
            rest.split('"')
                .next()
                .and_then(|w| w.parse().ok())
                .expect("a number")
        };
        let widths: Vec<f64> = text
            .lines()
            .filter(|line| line.starts_with("<rect") && line.contains("x=\"520\""))
            .map(width)
            .collect();
        assert_eq!(widths.len(), 4, "{text}");
        assert!((widths[0] / widths[1] - 2.0).abs() < 0.02, "{widths:?}");
    }

    #[test]
    fn what_cannot_be_shown_is_refused() {
        let said = |drawn: Result<String, PlotError>| drawn.expect_err("refused").to_string();
        assert!(said(lines("t", "n", &[panel(&[])])).contains("nothing to show"));
        assert!(said(lines("t", "n", &[panel(&[(1.0, 0.0)])])).contains("no logarithm"));
        assert!(said(bars("t", "u", &["a"], &[])).contains("nothing to show"));
        let group = Bars {
            name: "g".into(),
            values: vec![1.0],
        };
        assert!(said(bars("t", "u", &["a", "b"], &[group])).contains("g has 1 bars"));
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown: Vec<String> = [0.25, 1.0, 3.456, 10.04, 512.3].map(number).into();
        assert_eq!(shown, ["0.25", "1", "3.46", "10", "512"]);
    }
}
