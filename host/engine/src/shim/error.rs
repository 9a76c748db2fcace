//! Errors of libtorch as one line of text.

use tch::TchError;

/// What went wrong in libtorch or in a callback that it ran.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShimError {
    /// libtorch refused an operation, or a callback returned an error; the text says which.
    #[error("{0}")]
    Torch(String),
    /// An argument that libtorch must not be given.
    #[error("{0}")]
    Argument(String),
}

impl ShimError {
    pub(super) fn from_text(text: &str) -> Self {
        Self::Torch(without_backtrace(text).to_owned())
    }
}

impl From<TchError> for ShimError {
    fn from(error: TchError) -> Self {
        match error {
            TchError::Torch(text) => Self::from_text(&text),
            other => Self::Torch(first_line(&other.to_string())),
        }
    }
}

/// The message in a text of libtorch: without the name of the binding, the C++ backtrace, and
/// everything after the first line.
///
/// ```
/// # use fwp_engine::shim::first_line;
/// let text = "Internal torch error: size 3 does not match size 4\nException raised from f at g.cpp:1\nframe #0: ...";
/// assert_eq!(first_line(text), "size 3 does not match size 4");
/// ```
pub fn first_line(text: &str) -> String {
    let text = without_backtrace(text);
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("libtorch gave no message").to_owned()
}

fn without_backtrace(text: &str) -> &str {
    let text = text.strip_prefix("Internal torch error: ").unwrap_or(text);
    let end = ["Exception raised from ", "\nframe #0"].iter().filter_map(|mark| text.find(mark)).min();
    text[..end.unwrap_or(text.len())].trim()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    #[test]
    fn a_real_message_is_cut_to_its_first_line() {
        let error = Tensor::from_slice(&[1f32, 2.]).f_add(&Tensor::from_slice(&[1f32, 2., 3.])).unwrap_err();
        assert!(error.to_string().contains("Exception raised"), "the premise of this test: {error}");
        let line = first_line(&error.to_string());
        assert!(line.contains("size of tensor a (2)"), "{line}");
        assert!(!line.contains("Exception") && !line.contains('\n'), "{line}");
        let ours = ShimError::from(error).to_string();
        assert!(!ours.contains("frame #") && ours.contains("size of tensor a (2)"), "{ours}");
    }

    #[test]
    fn an_empty_message_still_says_something() {
        assert_eq!(first_line(""), "libtorch gave no message");
        assert_eq!(first_line("Exception raised from x"), "libtorch gave no message");
    }
}
