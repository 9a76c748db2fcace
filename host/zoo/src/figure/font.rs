//! The font of the figures, which is part of this program: a figure looks the same wherever it is drawn.

use std::sync::LazyLock;

use ttf_parser::Face;

/// The font's name, and what a reader without it takes.
pub const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

/// DejaVu Sans with the characters that figures need; see `font/README.md`.
static DATA: &[u8] = include_bytes!("../../font/DejaVuSans.ttf");

static FACE: LazyLock<Option<Face<'static>>> = LazyLock::new(|| Face::parse(DATA, 0).ok());

/// The font, to be drawn.
pub fn face() -> Option<&'static Face<'static>> {
    FACE.as_ref()
}

/// The width of a text at a size, in the unit of the size.
pub fn width(text: &str, size: f64) -> f64 {
    let Some(face) = FACE.as_ref() else { return 0.6 * size * text.chars().count() as f64 };
    let advance = |c: char| face.glyph_index(c).and_then(|g| face.glyph_hor_advance(g)).unwrap_or(face.units_per_em() / 2);
    let units: f64 = text.chars().map(|c| f64::from(advance(c))).sum();
    units * size / f64::from(face.units_per_em())
}

/// A text cut so that it is at most so wide, with dots where something is left out.
pub fn fitted(text: &str, size: f64, most: f64) -> String {
    if width(text, size) <= most {
        return text.into();
    }
    let mut kept: Vec<char> = text.chars().collect();
    while !kept.is_empty() && width(&kept.iter().collect::<String>(), size) + width("…", size) > most {
        kept.pop();
    }
    kept.iter().collect::<String>().trim_end().to_string() + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_those_of_the_font() {
        assert!(FACE.is_some());
        // Digits of DejaVu Sans are 1303/2048 wide.
        assert!((width("0", 2048.0) - 1303.0).abs() < 1.0, "{}", width("0", 2048.0));
        assert_eq!(width("", 12.0), 0.0);
        assert!(width("10⁻³", 12.0) > width("10", 12.0));
        for c in "aZ09äπβλ≤≥×–⁻¹²³₂·".chars() {
            assert!(FACE.as_ref().is_some_and(|f| f.glyph_index(c).is_some()), "{c}");
        }
        let cut = fitted("a very long name", 12.0, 60.0);
        assert!(cut.ends_with('…') && width(&cut, 12.0) <= 60.0, "{cut}");
        assert_eq!(fitted("short", 12.0, 60.0), "short");
    }
}
