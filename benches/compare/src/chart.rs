//! Bar charts as SVG.

use std::fmt::Write;

pub struct Bar {
    pub label: String,
    pub value: f64,
    /// Whether it is a bar of this crate.
    pub is_ours: bool,
}

const WIDTH: f64 = 760.0;
const LABELS: f64 = 250.0;
const ROW: f64 = 24.0;

/// Draws groups of bars below each other. Shorter is better.
pub fn svg(title: &str, unit: &str, groups: &[(String, Vec<Bar>)]) -> String {
    let bars = groups.iter().flat_map(|(_, bars)| bars);
    let longest = bars.clone().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    let height = 52.0 + ROW * (bars.count() + 2 * groups.len()) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"16\" font-weight=\"bold\">{title}</text>\n\
         <text x=\"12\" y=\"42\" fill=\"#555\">{unit}, shorter is better</text>\n"
    );
    let mut y = 52.0;
    for (name, bars) in groups {
        y += ROW;
        writeln!(svg, "<text x=\"12\" y=\"{}\" font-weight=\"bold\">{name}</text>", y + 8.0)
            .unwrap();
        y += ROW * 0.7;
        for Bar { label, value, is_ours } in bars {
            let length = (WIDTH - LABELS - 90.0) * value / longest;
            let color = if *is_ours { "#c2410c" } else { "#94a3b8" };
            writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>\
                 <rect x=\"{LABELS}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{}\" fill=\"{color}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{value:.0}</text>",
                LABELS - 8.0,
                y + 14.0,
                ROW - 6.0,
                LABELS + length + 6.0,
                y + 14.0,
            )
            .unwrap();
            y += ROW;
        }
    }
    svg + "</svg>\n"
}
