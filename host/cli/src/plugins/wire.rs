//! What parent and child say to each other.
//!
//! The parent writes one [`Job`] as JSON to the child's stdin.
//! The child answers on the pipe that was its stdout with frames: a kind (one byte), the index of a library and of a question
//! (four bytes each), a length (eight bytes), and as many bytes. Numbers are little-endian.

use std::ffi::OsString;
use std::io::{self, Write};

use fwp_sdk::Request;
use serde::{Deserialize, Serialize};

/// Longest answer that the parent takes, and longest job that the child takes.
pub const MAX_ANSWER: usize = fwp_sdk::program::MAX_BYTES;

/// The size of a frame's head.
pub const HEAD: usize = 17;

/// What a child is to do: libraries in order, questions in order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The libraries.
    pub libraries: Vec<LibraryJob>,
}

/// A library and what is asked of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LibraryJob {
    /// Its path; need not be UTF-8.
    pub path: OsString,
    /// The questions.
    pub questions: Vec<Question>,
}

/// A question to a library.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// Its parts; the answer is JSON.
    List,
    /// A request to one of its parts.
    Describe(Request),
}

/// Kinds of frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The child is about to open a library: what goes wrong from here on is that library's doing.
    Opening,
    /// The library is open; the bytes are the version of its SDK.
    Opened,
    /// The library cannot be used; the bytes are a [`Refusal`](super::Refusal) as JSON.
    Refused,
    /// An answer.
    Answer,
    /// The library answered a question with an error; the bytes are its text.
    Error,
    /// The child has nothing more to say.
    End,
}

impl FrameKind {
    const ALL: [FrameKind; 6] =
        [FrameKind::Opening, FrameKind::Opened, FrameKind::Refused, FrameKind::Answer, FrameKind::Error, FrameKind::End];

    /// The kind with this number.
    pub fn from_byte(byte: u8) -> Option<FrameKind> {
        FrameKind::ALL.get(usize::from(byte)).copied()
    }
}

/// Writes a frame.
pub fn write(out: &mut impl Write, kind: FrameKind, library: usize, question: usize, bytes: &[u8]) -> io::Result<()> {
    let mut head = [0; HEAD];
    head[0] = kind as u8;
    head[1..5].copy_from_slice(&(library as u32).to_le_bytes());
    head[5..9].copy_from_slice(&(question as u32).to_le_bytes());
    head[9..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.write_all(&head)?;
    out.write_all(bytes)?;
    out.flush()
}

/// The head of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// The kind.
    pub kind: FrameKind,
    /// Index of the library.
    pub library: usize,
    /// Index of the question.
    pub question: usize,
    /// How many bytes follow.
    pub length: u64,
}

impl Head {
    /// Reads a head; `None` for an unknown kind.
    pub fn read(bytes: &[u8; HEAD]) -> Option<Head> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
        Some(Head {
            kind: FrameKind::from_byte(bytes[0])?,
            library: u32_at(1),
            question: u32_at(5),
            length: u64::from_le_bytes(bytes[9..].try_into().expect("eight bytes")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_reads_back() {
        for kind in FrameKind::ALL {
            let mut bytes = Vec::new();
            write(&mut bytes, kind, 7, 300, b"xyz").unwrap();
            let head = Head::read(bytes[..HEAD].try_into().unwrap()).unwrap();
            assert_eq!((head.kind, head.library, head.question, head.length), (kind, 7, 300, 3));
            assert_eq!(&bytes[HEAD..], b"xyz");
        }
        assert!(Head::read(&[9; HEAD]).is_none());
    }
}
