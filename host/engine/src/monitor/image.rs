//! A matrix as a PNG.

/// Encodes a matrix, row by row from the top, one pixel an element: zero white, the largest
/// magnitude full red (positive) or blue (negative), what is not finite grey.
///
/// Returns the width (columns), the height (rows) and the file.
///
/// # Errors
///
/// A number of values that is not a multiple of `rows`, an empty matrix, or one too large for PNG.
pub(super) fn png_of_matrix(rows: usize, values: &[f32]) -> Result<(u32, u32, Vec<u8>), String> {
    if rows == 0 || values.is_empty() || !values.len().is_multiple_of(rows) {
        return Err(format!("an image of {} values in {rows} rows", values.len()));
    }
    let width = u32::try_from(values.len() / rows).map_err(|e| e.to_string())?;
    let height = u32::try_from(rows).map_err(|e| e.to_string())?;
    let largest = values.iter().filter(|v| v.is_finite()).fold(0f32, |m, v| m.max(v.abs()));
    let mut pixels = Vec::with_capacity(values.len() * 3);
    for &value in values {
        pixels.extend(if !value.is_finite() {
            [128; 3]
        } else {
            let share = if largest > 0. { value / largest } else { 0. };
            let fade = (255. * (1. - share.abs())).round() as u8;
            if share >= 0. { [255, fade, fade] } else { [fade, fade, 255] }
        });
    }
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|e| e.to_string())?;
    writer.write_image_data(&pixels).map_err(|e| e.to_string())?;
    writer.finish().map_err(|e| e.to_string())?;
    Ok((width, height, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_the_width_and_the_first_row_is_on_top() {
        // [2, 3]: one positive at row 0, column 2, one negative at row 1, column 0.
        let (width, height, file) = png_of_matrix(2, &[0., 0., 4., -2., f32::NAN, 0.]).unwrap();
        assert_eq!((width, height), (3, 2));
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; 18];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (3, 2));
        let pixel = |row: usize, column: usize| <[u8; 3]>::try_from(&pixels[(row * 3 + column) * 3..][..3]).unwrap();
        assert_eq!(pixel(0, 2), [255, 0, 0]);
        assert_eq!(pixel(1, 0), [128, 128, 255]);
        assert_eq!(pixel(1, 1), [128, 128, 128]);
        assert_eq!(pixel(0, 0), [255, 255, 255]);
    }

    #[test]
    fn impossible_shapes_are_refused() {
        assert!(png_of_matrix(0, &[1.]).is_err());
        assert!(png_of_matrix(2, &[1., 2., 3.]).is_err());
        assert!(png_of_matrix(2, &[]).is_err());
    }
}
