//! Attributes of operators that are one of a few things.

use super::bytes::{Attribute, BytesError, Reader, Writer};

/// What a feature map is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MapRole {
    /// A query.
    Query,
    /// A key.
    Key,
}

crate::choices! {
    /// Where a fast-weight node applies the factor key_dim^-1/2.
    pub enum QueryScale {
        /// Nowhere.
        None = "none",
        /// On the query, after the feature map.
        Query = "query",
        /// On the output.
        Output = "output",
    }
}

/// Which state an output reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadAt {
    /// The state after the step.
    After,
    /// The state before the step.
    Before,
    /// The state at the start of the step's chunk; chunks of this length, at least 1, count from the last reset.
    ChunkStart(usize),
}

fn unknown<T>(what: &str, code: u64) -> Result<T, BytesError> {
    Err(BytesError::Invalid(format!("{what} number {code}")))
}

impl Attribute for MapRole {
    fn put(&self, w: &mut Writer) {
        w.uint(*self as u64);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, BytesError> {
        match r.uint()? {
            0 => Ok(MapRole::Query),
            1 => Ok(MapRole::Key),
            code => unknown("a role", code),
        }
    }
    fn show(&self) -> String {
        match self {
            MapRole::Query => "query".into(),
            MapRole::Key => "key".into(),
        }
    }
}

impl Attribute for QueryScale {
    fn put(&self, w: &mut Writer) {
        w.uint(*self as u64);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, BytesError> {
        match r.uint()? {
            0 => Ok(QueryScale::None),
            1 => Ok(QueryScale::Query),
            2 => Ok(QueryScale::Output),
            code => unknown("a scale", code),
        }
    }
    fn show(&self) -> String {
        match self {
            QueryScale::None => "none".into(),
            QueryScale::Query => "query".into(),
            QueryScale::Output => "output".into(),
        }
    }
}

impl Attribute for ReadAt {
    fn put(&self, w: &mut Writer) {
        match self {
            ReadAt::After => w.uint(0),
            ReadAt::Before => w.uint(1),
            ReadAt::ChunkStart(steps) => {
                w.uint(2);
                w.size(*steps);
            }
        }
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, BytesError> {
        match r.uint()? {
            0 => Ok(ReadAt::After),
            1 => Ok(ReadAt::Before),
            2 => Ok(ReadAt::ChunkStart(r.size()?)),
            code => unknown("a read", code),
        }
    }
    fn show(&self) -> String {
        match self {
            ReadAt::After => "after".into(),
            ReadAt::Before => "before".into(),
            ReadAt::ChunkStart(steps) => format!("at the start of its chunk of {steps}"),
        }
    }
}
