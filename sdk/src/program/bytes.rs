//! The byte format of programs: primitives.
//!
//! Little-endian, variable-length integers, one canonical encoding of every value.

use std::fmt;

/// Why bytes are not a program.
#[derive(Clone, Debug, PartialEq)]
pub enum BytesError {
    /// The bytes do not start with the format's magic number.
    NotAProgram,
    /// The program needs a newer format than this reader knows.
    NewerFormat {
        /// The program's format.
        found: (u16, u16),
        /// The newest format this reader knows.
        known: (u16, u16),
    },
    /// The bytes end early.
    Truncated,
    /// An operator code that this reader does not know.
    UnknownOperator(u16),
    /// A required section that this reader does not know.
    UnknownSection(u16),
    /// A value that the format does not allow, with what it was.
    Invalid(String),
    /// A size, count or depth beyond the reader's limits, with what it was.
    Limit(String),
    /// A node whose operands do not fit its operator, with the place.
    Shape(String),
}

impl fmt::Display for BytesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BytesError::NotAProgram => write!(f, "these bytes are not a program"),
            BytesError::NewerFormat { found, known } => write!(
                f,
                "the program has format {}.{}, this host reads up to {}.{}: use a newer fwp-host or rebuild the plugin with an older SDK",
                found.0, found.1, known.0, known.1
            ),
            BytesError::Truncated => write!(f, "the program ends early"),
            BytesError::UnknownOperator(code) => {
                write!(f, "unknown operator 0x{code:04x}: the plugin was built with a newer SDK than this host")
            }
            BytesError::UnknownSection(id) => {
                write!(f, "unknown required section 0x{id:04x}: the plugin was built with a newer SDK than this host")
            }
            BytesError::Invalid(what) => write!(f, "invalid program: {what}"),
            BytesError::Limit(what) => write!(f, "program beyond a limit: {what}"),
            BytesError::Shape(what) => write!(f, "{what}"),
        }
    }
}

impl std::error::Error for BytesError {}

/// Longest string or list that a reader accepts.
pub const MAX_ITEMS: usize = 1 << 20;
/// Longest name that a reader accepts, in bytes.
pub const MAX_NAME: usize = 1 << 12;
/// Most structures (functions, nodes, arguments, ...) in one section: in memory each is much larger than in bytes.
const MAX_STRUCTURES: usize = 400_000;

/// Writes the primitives of the format.
#[derive(Default)]
pub struct Writer {
    /// What was written so far.
    pub bytes: Vec<u8>,
}

impl Writer {
    /// Two bytes.
    pub fn u16(&mut self, x: u16) {
        self.bytes.extend(x.to_le_bytes());
    }
    /// An unsigned integer in seven-bit groups.
    pub fn uint(&mut self, mut x: u64) {
        while x >= 0x80 {
            self.bytes.push(x as u8 | 0x80);
            x >>= 7;
        }
        self.bytes.push(x as u8);
    }
    /// A length or index.
    pub fn size(&mut self, x: usize) {
        self.uint(x as u64);
    }
    /// A float, by its bits; every NaN is one NaN.
    pub fn float(&mut self, x: f64) {
        let x = if x.is_nan() { f64::NAN } else { x };
        self.bytes.extend(x.to_bits().to_le_bytes());
    }
    /// A string with its length.
    pub fn text(&mut self, s: &str) {
        self.size(s.len());
        self.bytes.extend(s.as_bytes());
    }
}

/// Reads the primitives of the format.
pub struct Reader<'a> {
    bytes: &'a [u8],
    structures: usize,
}

impl<'a> Reader<'a> {
    /// A reader of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, structures: MAX_STRUCTURES }
    }
    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], BytesError> {
        if n > self.bytes.len() {
            return Err(BytesError::Truncated);
        }
        let (head, rest) = self.bytes.split_at(n);
        self.bytes = rest;
        Ok(head)
    }
    /// One byte.
    pub fn u8(&mut self) -> Result<u8, BytesError> {
        Ok(self.take(1)?[0])
    }
    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, BytesError> {
        let b = self.take(2)?;
        Ok(u16::from_le_bytes([b[0], b[1]]))
    }
    /// An unsigned integer; the shortest encoding is the only one allowed.
    pub fn uint(&mut self) -> Result<u64, BytesError> {
        let mut x = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.u8()?;
            let part = u64::from(b & 0x7f);
            if shift == 63 && part > 1 {
                return Err(BytesError::Invalid("integer too large".into()));
            }
            x |= part << shift;
            if b & 0x80 == 0 {
                if b == 0 && shift > 0 {
                    return Err(BytesError::Invalid("integer not in its shortest form".into()));
                }
                return Ok(x);
            }
        }
        Err(BytesError::Invalid("integer too long".into()))
    }
    /// A length or index, below 2^48.
    pub fn size(&mut self) -> Result<usize, BytesError> {
        let x = self.uint()?;
        if x >= 1 << 48 {
            return Err(BytesError::Limit(format!("a size of {x}")));
        }
        Ok(x as usize)
    }
    /// The length of a list that follows.
    pub fn count(&mut self) -> Result<usize, BytesError> {
        let n = self.size()?;
        if n > MAX_ITEMS {
            return Err(BytesError::Limit(format!("a list of {n} items")));
        }
        // Every item takes at least one byte: a huge count cannot make the reader reserve memory.
        if n > self.bytes.len() {
            return Err(BytesError::Truncated);
        }
        Ok(n)
    }
    /// The length of a list of structures that follows.
    pub(super) fn structures(&mut self) -> Result<usize, BytesError> {
        let n = self.count()?;
        self.structures = self.structures.checked_sub(n).ok_or_else(|| {
            BytesError::Limit(format!("more than {MAX_STRUCTURES} functions, operations, arguments and names in one section"))
        })?;
        Ok(n)
    }
    /// A float; one NaN is the only one allowed.
    pub fn float(&mut self) -> Result<f64, BytesError> {
        let b = self.take(8)?;
        let x = f64::from_bits(u64::from_le_bytes(b.try_into().expect("eight bytes")));
        if x.is_nan() && x.to_bits() != f64::NAN.to_bits() {
            return Err(BytesError::Invalid("a NaN that is not the canonical one".into()));
        }
        Ok(x)
    }
    /// A string.
    pub fn text(&mut self) -> Result<String, BytesError> {
        let n = self.count()?;
        let b = self.take(n)?;
        String::from_utf8(b.to_vec()).map_err(|_| BytesError::Invalid("text that is not UTF-8".into()))
    }
    /// A short string.
    pub fn name(&mut self) -> Result<String, BytesError> {
        let name = self.text()?;
        if name.len() > MAX_NAME {
            return Err(BytesError::Limit(format!("a name of {} bytes", name.len())));
        }
        Ok(name)
    }
}

/// A type of attribute that an operator may carry.
pub trait Attribute: Sized {
    /// Writes the attribute.
    fn put(&self, w: &mut Writer);
    /// Reads the attribute.
    fn get(r: &mut Reader<'_>) -> Result<Self, BytesError>;
    /// The attribute as text for people.
    fn show(&self) -> String;
}

impl Attribute for usize {
    fn put(&self, w: &mut Writer) {
        w.size(*self);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, BytesError> {
        r.size()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Attribute for u32 {
    fn put(&self, w: &mut Writer) {
        w.uint(u64::from(*self));
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, BytesError> {
        u32::try_from(r.uint()?).map_err(|_| BytesError::Invalid("index too large".into()))
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Attribute for i64 {
    fn put(&self, w: &mut Writer) {
        // Zigzag: small magnitudes of either sign stay short.
        w.uint(((*self << 1) ^ (*self >> 63)) as u64);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, BytesError> {
        let x = r.uint()?;
        Ok((x >> 1) as i64 ^ -((x & 1) as i64))
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Attribute for f64 {
    fn put(&self, w: &mut Writer) {
        w.float(*self);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, BytesError> {
        r.float()
    }
    fn show(&self) -> String {
        format!("{self}")
    }
}

impl Attribute for bool {
    fn put(&self, w: &mut Writer) {
        w.bytes.push(u8::from(*self));
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, BytesError> {
        match r.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            b => Err(BytesError::Invalid(format!("a truth value of {b}"))),
        }
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Attribute for String {
    fn put(&self, w: &mut Writer) {
        w.text(self);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, BytesError> {
        r.name()
    }
    fn show(&self) -> String {
        self.clone()
    }
}

impl<T: Attribute> Attribute for Vec<T> {
    fn put(&self, w: &mut Writer) {
        w.size(self.len());
        for x in self {
            x.put(w);
        }
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, BytesError> {
        let n = r.count()?;
        (0..n).map(|_| T::get(r)).collect()
    }
    fn show(&self) -> String {
        // Long tables are shortened: this text is for reading.
        let shown: Vec<String> = self.iter().take(8).map(Attribute::show).collect();
        let dots = if self.len() > 8 { ", ..." } else { "" };
        format!("[{}{dots}]", shown.join(", "))
    }
}
