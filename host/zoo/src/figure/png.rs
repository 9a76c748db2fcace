//! The shapes of a picture as pixels.

use tiny_skia::{FillRule, LineJoin, Mask, Paint, Path, PathBuilder, Pixmap, StrokeDash, Transform};
use ttf_parser::{GlyphId, OutlineBuilder};

use super::font;
use super::svg::{Anchor, Picture, Shape, Stroke};

/// Pixels for each unit of the drawing: sharp on a screen of twice the usual density, and in print.
const SCALE: f32 = 2.0;

/// Renders a picture; nothing where it would be larger than any figure is.
pub fn render(picture: &Picture) -> Option<Vec<u8>> {
    let pixels = |size: f64| (size as f32 * SCALE) as u32;
    let mut canvas = Canvas { pixels: Pixmap::new(pixels(picture.width), pixels(picture.height))?, clip: None };
    canvas.pixels.fill(tiny_skia::Color::WHITE);
    picture.shapes().iter().for_each(|shape| canvas.draw(shape));
    canvas.pixels.encode_png().ok()
}

struct Canvas {
    pixels: Pixmap,
    /// What is drawn at all; everything where there is none.
    clip: Option<Mask>,
}

impl Canvas {
    fn draw(&mut self, shape: &Shape) {
        match shape {
            Shape::Line { points, stroke } => {
                if let Some(path) = path(points, false) {
                    self.stroke(&path, stroke);
                }
            }
            Shape::Polygon { points, fill, stroke } => {
                if let Some(path) = path(points, true) {
                    self.fill(&path, fill, unit());
                    if let Some(stroke) = stroke {
                        self.stroke(&path, stroke);
                    }
                }
            }
            Shape::Circle { at, radius, fill, stroke } => {
                if let Some(path) = PathBuilder::from_circle(at.0 as f32, at.1 as f32, *radius as f32) {
                    self.fill(&path, fill, unit());
                    self.stroke(&path, stroke);
                }
            }
            Shape::Text { at, text, size, anchor, colour, turn } => self.text(*at, text, *size, *anchor, colour, *turn),
            Shape::Clip((x, y), (w, h)) => {
                let corners = [(*x, *y), (x + w, *y), (x + w, y + h), (*x, y + h)];
                let mask = Mask::new(self.pixels.width(), self.pixels.height());
                if let (Some(path), Some(mut mask)) = (path(&corners, true), mask) {
                    mask.fill_path(&path, FillRule::Winding, true, unit());
                    self.clip = Some(mask);
                }
            }
            Shape::Unclip => self.clip = None,
        }
    }

    fn fill(&mut self, path: &Path, colour: &str, transform: Transform) {
        self.pixels.fill_path(path, &paint(colour, 1.0), FillRule::Winding, transform, self.clip.as_ref());
    }

    fn stroke(&mut self, path: &Path, stroke: &Stroke) {
        let line = tiny_skia::Stroke {
            width: stroke.width as f32,
            line_join: LineJoin::Round,
            dash: stroke.dash.and_then(|(dash, gap)| StrokeDash::new(vec![dash as f32, gap as f32], 0.0)),
            ..tiny_skia::Stroke::default()
        };
        self.pixels.stroke_path(path, &paint(stroke.colour, stroke.opacity), &line, unit(), self.clip.as_ref());
    }

    fn text(&mut self, at: (f64, f64), text: &str, size: f64, anchor: Anchor, colour: &str, turn: f64) {
        let before = match anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => font::width(text, size) / 2.0,
            Anchor::End => font::width(text, size),
        };
        let place = unit().pre_translate(at.0 as f32, at.1 as f32).pre_concat(Transform::from_rotate(turn as f32));
        let mut x = -before;
        for c in text.chars() {
            if let Some((path, units)) = glyph(c) {
                // The font's second axis points upwards.
                let scale = (size / units) as f32;
                self.fill(&path, colour, place.pre_translate(x as f32, 0.0).pre_scale(scale, -scale));
            }
            x += font::width(c.encode_utf8(&mut [0; 4]), size);
        }
    }
}

/// From the units of the drawing to pixels.
fn unit() -> Transform {
    Transform::from_scale(SCALE, SCALE)
}

fn path(points: &[(f64, f64)], closed: bool) -> Option<Path> {
    let mut builder = PathBuilder::new();
    let (first, rest) = points.split_first()?;
    builder.move_to(first.0 as f32, first.1 as f32);
    rest.iter().for_each(|(x, y)| builder.line_to(*x as f32, *y as f32));
    if closed {
        builder.close();
    }
    builder.finish()
}

/// A colour written as `#RRGGBB`; black where it is written otherwise.
fn paint(colour: &str, opacity: f64) -> Paint<'static> {
    let part = |from: usize| colour.get(from..from + 2).and_then(|t| u8::from_str_radix(t, 16).ok()).unwrap_or_default();
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(part(1), part(3), part(5), (opacity.clamp(0.0, 1.0) * 255.0).round() as u8);
    paint
}

/// The outline of a character in the units of the font, and how many of them are its size.
fn glyph(c: char) -> Option<(Path, f64)> {
    struct Outline(PathBuilder);
    impl OutlineBuilder for Outline {
        fn move_to(&mut self, x: f32, y: f32) {
            self.0.move_to(x, y);
        }
        fn line_to(&mut self, x: f32, y: f32) {
            self.0.line_to(x, y);
        }
        fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
            self.0.quad_to(x1, y1, x, y);
        }
        fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
            self.0.cubic_to(x1, y1, x2, y2, x, y);
        }
        fn close(&mut self) {
            self.0.close();
        }
    }
    let face = font::face()?;
    let mut outline = Outline(PathBuilder::new());
    // What the font lacks is drawn as the box that it has for this.
    face.outline_glyph(face.glyph_index(c).unwrap_or(GlyphId(0)), &mut outline)?;
    Some((outline.0.finish()?, f64::from(face.units_per_em())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_where_the_shapes_are() {
        let mut picture = Picture::new("t", 40.0, 20.0);
        picture.rect((2.0, 2.0), (10.0, 10.0), "#FF0000", None);
        picture.clipped((20.0, 0.0), (10.0, 20.0), |p| p.rect((15.0, 0.0), (20.0, 20.0), "#0000FF", None));
        picture.text((35.0, 15.0), "I", 12.0, Anchor::Middle, "#000000");
        let pixels = Pixmap::decode_png(&render(&picture).unwrap()).unwrap();
        assert_eq!((pixels.width(), pixels.height()), (80, 40));
        let at = |x: f32, y: f32| {
            let p = pixels.pixel((x * SCALE) as u32, (y * SCALE) as u32).unwrap();
            (p.red(), p.green(), p.blue())
        };
        assert_eq!((at(5.0, 5.0), at(25.0, 5.0)), ((255, 0, 0), (0, 0, 255)));
        // Beyond the clip, and beside everything.
        assert_eq!((at(17.0, 5.0), at(32.0, 18.0), at(1.0, 1.0)), ((255, 255, 255), (255, 255, 255), (255, 255, 255)));
        let ink = (32..39).any(|x| at(x as f32, 10.0).0 < 128);
        assert!(ink, "the letter is drawn");
    }
}
