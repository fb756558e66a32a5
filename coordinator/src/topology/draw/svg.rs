//! What SVG is made of here.

use super::place::{Placed, Point};
use std::fmt::Write;

const STYLE: &str = "\
text{font-family:'DejaVu Sans',Verdana,Helvetica,sans-serif;fill:#1f2933;font-size:12px}\
.title{font-size:20px;font-weight:bold}.note{fill:#52606d}.name{font-size:14px;font-weight:bold}\
.groupname{font-size:14px;font-weight:bold;fill:#3e4c59}.size{fill:#3e4c59}.cost{font-size:11px}\
.far{fill:#fff}.middle{text-anchor:middle}.end{text-anchor:end}\
.group{fill:#f5f7fa;stroke:#cbd2d9;stroke-width:1.5}.box{stroke-width:1.5}\
.node{fill:#e3f0fb;stroke:#2b6cb0}.memory{fill:#e6f6ef;stroke:#2f855a}\
.cpuonly{fill:#f3ebfc;stroke:#6b46c1}.slow{fill:#fdf0e1;stroke:#c05621}\
.label{fill:#fff;stroke:#cbd2d9}.cpu{fill:#486581}.bar{fill:#7b8794}\
.link{stroke:#829ab1;stroke-linecap:round}.uplink{stroke:#c05621;stroke-linecap:round}";

#[derive(Debug)]
pub(super) struct Svg(String);

impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\">\n<style>{STYLE}</style>\n"
        );
        text += "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n";
        Self(text)
    }

    pub(super) fn rectangle(&mut self, area: Placed, radius: f64, class: &str) {
        let Placed {
            x,
            y,
            width,
            height,
        } = area;
        let _ = writeln!(
            self.0,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
             rx=\"{radius}\" class=\"{class}\"/>"
        );
    }

    /// From light, which is near, to dark.
    pub(super) fn shade(&mut self, area: Placed, far: f64) {
        let mix = |near: f64, dark: f64| (near + (dark - near) * far).round();
        let (red, green, blue) = (mix(240.0, 36.0), mix(244.0, 82.0), mix(248.0, 130.0));
        let Placed {
            x,
            y,
            width,
            height,
        } = area;
        let _ = writeln!(
            self.0,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"3\" \
             fill=\"rgb({red},{green},{blue})\"/>"
        );
    }

    pub(super) fn line(&mut self, from: Point, to: Point, width: f64, class: &str) {
        let _ = writeln!(
            self.0,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" class=\"{class}\" \
             stroke-width=\"{width:.1}\"/>",
            from.x, from.y, to.x, to.y
        );
    }

    pub(super) fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let text = text
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        // What XML has no way to say.
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        let _ = writeln!(
            self.0,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{text}</text>"
        );
    }

    pub(super) fn end(mut self) -> String {
        self.0 += "</svg>\n";
        self.0
    }
}
