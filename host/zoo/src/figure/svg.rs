//! Shapes, written as SVG: numbers with two places, text escaped.
//!
//! Every shape is kept as well, for `png`: the two files of a figure are the same picture.

use std::fmt::Write;

use super::font::FAMILY;

/// Where a text stands beside its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

/// A line to be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stroke {
    /// `#RRGGBB`.
    pub colour: &'static str,
    pub width: f64,
    /// Lengths of a dash and of the gap behind it; none is a whole line.
    pub dash: Option<(f64, f64)>,
    /// 1 hides what is behind.
    pub opacity: f64,
}

impl Stroke {
    /// A whole line.
    pub const fn solid(colour: &'static str, width: f64) -> Stroke {
        Stroke { colour, width, dash: None, opacity: 1.0 }
    }

    /// A line of dashes.
    pub const fn dashed(colour: &'static str, width: f64, dash: (f64, f64)) -> Stroke {
        Stroke { colour, width, dash: Some(dash), opacity: 1.0 }
    }

    fn attributes(&self) -> String {
        let mut text = format!(r#" stroke="{}" stroke-width="{}""#, self.colour, num(self.width));
        if let Some((dash, gap)) = self.dash {
            _ = write!(text, r#" stroke-dasharray="{} {}""#, num(dash), num(gap));
        }
        if self.opacity < 1.0 {
            _ = write!(text, r#" stroke-opacity="{}""#, num(self.opacity));
        }
        text
    }
}

/// A shape as it was drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// A line through points.
    Line {
        points: Vec<(f64, f64)>,
        stroke: Stroke,
    },
    /// A closed shape.
    Polygon {
        points: Vec<(f64, f64)>,
        fill: String,
        stroke: Option<Stroke>,
    },
    Circle {
        at: (f64, f64),
        radius: f64,
        fill: String,
        stroke: Stroke,
    },
    /// A text whose base line is at the point, turned by so many degrees to the right.
    Text {
        at: (f64, f64),
        text: String,
        size: f64,
        anchor: Anchor,
        colour: &'static str,
        turn: f64,
    },
    /// From here on only what is inside is drawn: place and size.
    Clip((f64, f64), (f64, f64)),
    /// From here on everything is drawn.
    Unclip,
}

/// A picture that is being drawn.
pub struct Picture {
    pub width: f64,
    pub height: f64,
    title: String,
    shapes: Vec<Shape>,
}

impl Picture {
    /// An empty picture. `title` is for who cannot see it.
    pub fn new(title: &str, width: f64, height: f64) -> Picture {
        Picture { width: width.ceil(), height: height.ceil(), title: title.into(), shapes: Vec::new() }
    }

    pub fn shapes(&self) -> &[Shape] {
        &self.shapes
    }

    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), stroke: Stroke) {
        self.polyline(vec![from, to], stroke);
    }

    pub fn polyline(&mut self, points: Vec<(f64, f64)>, stroke: Stroke) {
        self.shapes.push(Shape::Line { points, stroke });
    }

    pub fn polygon(&mut self, points: Vec<(f64, f64)>, fill: impl Into<String>, stroke: Option<Stroke>) {
        self.shapes.push(Shape::Polygon { points, fill: fill.into(), stroke });
    }

    pub fn rect(&mut self, (x, y): (f64, f64), (w, h): (f64, f64), fill: impl Into<String>, stroke: Option<Stroke>) {
        self.polygon(vec![(x, y), (x + w, y), (x + w, y + h), (x, y + h)], fill, stroke);
    }

    pub fn circle(&mut self, at: (f64, f64), radius: f64, fill: impl Into<String>, stroke: Stroke) {
        self.shapes.push(Shape::Circle { at, radius, fill: fill.into(), stroke });
    }

    pub fn text(&mut self, at: (f64, f64), text: &str, size: f64, anchor: Anchor, colour: &'static str) {
        self.turned(at, text, size, anchor, colour, 0.0);
    }

    /// A text that is turned by so many degrees to the right; to the left where they are negative.
    pub fn turned(&mut self, at: (f64, f64), text: &str, size: f64, anchor: Anchor, colour: &'static str, turn: f64) {
        self.shapes.push(Shape::Text { at, text: text.into(), size, anchor, colour, turn });
    }

    /// What is drawn inside is cut off at the border of a rectangle.
    pub fn clipped(&mut self, at: (f64, f64), size: (f64, f64), draw: impl FnOnce(&mut Picture)) {
        self.shapes.push(Shape::Clip(at, size));
        draw(self);
        self.shapes.push(Shape::Unclip);
    }

    /// The picture as an SVG document.
    pub fn svg(&self) -> String {
        let (w, h) = (num(self.width), num(self.height));
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" font-family=\"{FAMILY}\">\n\
             <title>{}</title>\n<rect width=\"{w}\" height=\"{h}\" fill=\"#FFFFFF\"/>\n",
            escaped(&self.title)
        );
        let mut clips = 0;
        for shape in &self.shapes {
            clips += usize::from(matches!(shape, Shape::Clip(..)));
            text += &element(shape, clips);
            text.push('\n');
        }
        text + "</svg>\n"
    }
}

/// A shape as an element; the `number` tells clips apart.
fn element(shape: &Shape, number: usize) -> String {
    let listed =
        |points: &[(f64, f64)]| points.iter().map(|(x, y)| format!("{},{}", num(*x), num(*y))).collect::<Vec<_>>().join(" ");
    let attributes = |stroke: &Option<Stroke>| stroke.map_or(String::new(), |s| s.attributes());
    match shape {
        Shape::Line { points, stroke } => {
            format!(r#"<polyline points="{}" fill="none"{} stroke-linejoin="round"/>"#, listed(points), stroke.attributes())
        }
        Shape::Polygon { points, fill, stroke } => {
            format!(r#"<polygon points="{}" fill="{fill}"{}/>"#, listed(points), attributes(stroke))
        }
        Shape::Circle { at, radius, fill, stroke } => {
            let (x, y, r) = (num(at.0), num(at.1), num(*radius));
            format!(r#"<circle cx="{x}" cy="{y}" r="{r}" fill="{fill}"{}/>"#, stroke.attributes())
        }
        Shape::Text { at, text, size, anchor, colour, turn } => {
            let (x, y, size, anchor) = (num(at.0), num(at.1), num(*size), anchor.name());
            let turn = if *turn == 0.0 { String::new() } else { format!(r#" transform="rotate({} {x} {y})""#, num(*turn)) };
            let text = escaped(text);
            format!(r#"<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{turn}>{text}</text>"#)
        }
        Shape::Clip(at, size) => {
            let (x, y, w, h) = (num(at.0), num(at.1), num(size.0), num(size.1));
            let rect = format!(r#"<rect x="{x}" y="{y}" width="{w}" height="{h}"/>"#);
            format!(r##"<clipPath id="clip{number}">{rect}</clipPath><g clip-path="url(#clip{number})">"##)
        }
        Shape::Unclip => "</g>".into(),
    }
}

/// A number with at most two places.
fn num(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// Text between tags: characters that XML gives a meaning, and those that it does not allow at all.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_text_is_escaped() {
        assert_eq!((num(1.0), num(0.125), num(-0.001), num(1200.5)), ("1".into(), "0.12".into(), "0".into(), "1200.5".into()));
        assert_eq!(escaped("a < b & \"c\"\u{7}"), "a &lt; b &amp; &quot;c&quot; ");
    }
}
