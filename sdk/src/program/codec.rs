//! Programs to bytes and back.
//!
//! A header (magic number, the lowest format that a reader must know) and sections.
//! Sections with an odd number are optional: a reader that does not know one skips it.
//! Documentation and source places are optional, so that [`Program::essence`] can leave them out.
//!
//! # What never changes
//!
//! Format 0.1 is frozen: its bytes have one meaning for ever, and every later reader reads them.
//!
//! | change | is |
//! |---|---|
//! | an optional section | no new format: nobody has to know it |
//! | an operator, a required section, another value of an enumeration | a new minor format: readers of before refuse it by the header |
//! | anything that gives bytes of before another meaning | a new major format, beside a reader for those of before |
//!
//! A writer names the lowest format that knows all of the program, so a part that uses nothing new is the same bytes as before:
//! older hosts load it, and runs that were begun with it go on.
//! `tests/golden` holds the operators of each format, and the programs of the repository's parts.

use super::bytes::{Attribute, BytesError, Reader, Writer};
use super::shape::{self, limits};
use super::{
    Argument, DType, Function, Kind, Node, Op, Output, Parameter, Program, Role, RuleInput, Scope, SlotInterface, Span, State,
    StateInit, TensorType, Training, Type,
};

/// The newest format that this SDK reads.
pub const FORMAT: (u16, u16) = (0, 1);
/// The format that knows everything there is so far; with the first addition, a program's format follows from what it holds.
const NEEDED: (u16, u16) = (0, 1);
/// Longest program that a reader accepts.
pub const MAX_BYTES: usize = 16 << 20;
const MAGIC: &[u8; 4] = b"FWPp";
const MAX_NODES: usize = 200_000;

mod section {
    pub const PART: u16 = 0x0002;
    pub const RULE: u16 = 0x0004;
    pub const SLOTS: u16 = 0x0006;
    pub const FUNCTIONS: u16 = 0x0008;
    pub const DOCUMENTATION: u16 = 0x0101;
    pub const PLACES: u16 = 0x0103;
    /// Without these there is no program.
    pub const REQUIRED: [u16; 4] = [PART, RULE, SLOTS, FUNCTIONS];
}

impl Program {
    /// The canonical bytes: equal programs give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode(true)
    }

    /// The canonical bytes of what is computed, without documentation and source places.
    /// Two programs with the same essence train the same model.
    pub fn essence(&self) -> Vec<u8> {
        self.encode(false)
    }

    fn encode(&self, with_text: bool) -> Vec<u8> {
        let mut w = Writer::default();
        w.bytes.extend(MAGIC);
        w.u16(NEEDED.0);
        w.u16(NEEDED.1);
        let mut put = |id: u16, fill: &dyn Fn(&mut Writer)| {
            let mut body = Writer::default();
            fill(&mut body);
            w.u16(id);
            w.size(body.bytes.len());
            w.bytes.extend(body.bytes);
        };
        put(section::PART, &|w| {
            w.bytes.push(self.kind as u8);
            w.text(&self.name);
            w.text(&self.config);
        });
        put(section::RULE, &|w| {
            list(w, &self.inputs, put_input);
            list(w, &self.states, |w, s| {
                w.text(&s.name);
                s.shape.put(w);
                match &s.init {
                    StateInit::Zeros => w.bytes.push(0),
                    StateInit::Constant(c) => {
                        w.bytes.push(1);
                        w.float(*c);
                    }
                    StateInit::Parameter(p) => {
                        w.bytes.push(2);
                        w.text(p);
                    }
                }
                w.size(s.held);
            });
        });
        put(section::SLOTS, &|w| {
            list(w, &self.slots, |w, s| {
                w.text(&s.name);
                w.text(&s.rule);
                for n in [s.heads, s.key_raw, s.key, s.value] {
                    w.size(n);
                }
                list(w, &s.inputs, put_input);
                s.output.put(w);
                list(w, &s.extras, |w, (name, shape)| {
                    w.text(name);
                    shape.put(w);
                });
            });
        });
        put(section::FUNCTIONS, &|w| {
            list(w, &self.functions, |w, f| {
                w.text(&f.name);
                list(w, &f.arguments, |w, a| {
                    w.text(&a.name);
                    put_type(w, &a.ty);
                });
                list(w, &f.parameters, |w, p| {
                    w.text(&p.name);
                    p.shape.put(w);
                    w.bytes.push(p.scope as u8);
                    w.bytes.push(match p.training {
                        Training::Trained { decay: false } => 0,
                        Training::Trained { decay: true } => 1,
                        Training::Constant => 2,
                        Training::Redrawn => 3,
                    });
                    p.init.put(w);
                });
                list(w, &f.nodes, |w, n| {
                    n.op.write(w);
                    n.operands.put(w);
                });
                list(w, &f.outputs, |w, o| {
                    w.text(&o.name);
                    o.node.put(w);
                });
            });
            list(w, &self.entries, |w, (name, index)| {
                w.text(name);
                index.put(w);
            });
        });
        if with_text {
            put(section::DOCUMENTATION, &|w| {
                w.text(&self.doc);
                w.text(&self.citation);
                w.text(&self.objective);
            });
            put(section::PLACES, &|w| {
                self.files.put(w);
                list(w, &self.functions, |w, f| {
                    list(w, &f.nodes, |w, n| {
                        for x in [n.span.file, n.span.line, n.span.column] {
                            x.put(w);
                        }
                    });
                });
            });
        }
        w.bytes
    }

    /// Reads a program from untrusted bytes: sizes, references and the type of every node are checked.
    ///
    /// Time and memory are bounded for any bytes; what is accepted encodes to the same bytes again,
    /// but for unknown optional sections, which are skipped.
    ///
    /// # Errors
    /// What is wrong with the bytes, or which node of which function does not fit its operands.
    pub fn from_bytes(bytes: &[u8]) -> Result<Program, BytesError> {
        if bytes.len() > MAX_BYTES {
            return Err(BytesError::Limit(format!("{} bytes", bytes.len())));
        }
        let mut r = Reader::new(bytes);
        if r.take(4).map_err(|_| BytesError::NotAProgram)? != MAGIC {
            return Err(BytesError::NotAProgram);
        }
        let found = (r.u16()?, r.u16()?);
        if found.0 != FORMAT.0 || found.1 > FORMAT.1 {
            return Err(BytesError::NewerFormat { found, known: FORMAT });
        }
        let mut p = Program {
            kind: Kind::UpdateRule,
            name: String::new(),
            config: String::new(),
            doc: String::new(),
            citation: String::new(),
            objective: String::new(),
            inputs: Vec::new(),
            states: Vec::new(),
            slots: Vec::new(),
            functions: Vec::new(),
            entries: Vec::new(),
            files: Vec::new(),
        };
        let mut last = None;
        let mut missing = section::REQUIRED.to_vec();
        while !r.is_empty() {
            let id = r.u16()?;
            if last.is_some_and(|l| l >= id) {
                return Err(BytesError::Invalid("sections out of order".into()));
            }
            last = Some(id);
            missing.retain(|m| *m != id);
            let n = r.size()?;
            let mut s = Reader::new(r.take(n)?);
            match id {
                section::PART => {
                    p.kind = match s.u8()? {
                        0 => Kind::UpdateRule,
                        1 => Kind::FeatureMap,
                        2 => Kind::SlowNet,
                        k => return Err(BytesError::Invalid(format!("part kind {k}"))),
                    };
                    p.name = s.name()?;
                    p.config = s.text()?;
                }
                section::RULE => {
                    p.inputs = get_list(&mut s, get_input)?;
                    p.states = get_list(&mut s, |r| {
                        Ok(State {
                            name: r.name()?,
                            shape: sizes(r)?,
                            init: match r.u8()? {
                                0 => StateInit::Zeros,
                                1 => StateInit::Constant(r.float()?),
                                2 => StateInit::Parameter(r.name()?),
                                k => return Err(BytesError::Invalid(format!("initial state {k}"))),
                            },
                            held: r.size()?,
                        })
                    })?;
                    if p.states.iter().any(|s| s.held == 0) {
                        return Err(BytesError::Invalid("a state that is held for 0 steps".into()));
                    }
                }
                section::SLOTS => {
                    p.slots = get_list(&mut s, |r| {
                        Ok(SlotInterface {
                            name: r.name()?,
                            rule: r.name()?,
                            heads: r.size()?,
                            key_raw: r.size()?,
                            key: r.size()?,
                            value: r.size()?,
                            inputs: get_list(r, get_input)?,
                            output: sizes(r)?,
                            extras: get_list(r, |r| Ok((r.name()?, sizes(r)?)))?,
                        })
                    })?;
                }
                section::FUNCTIONS => {
                    p.functions = get_list(&mut s, get_function)?;
                    p.entries = get_list(&mut s, |r| Ok((r.name()?, u32::get(r)?)))?;
                }
                section::DOCUMENTATION => {
                    p.doc = s.text()?;
                    p.citation = s.text()?;
                    p.objective = s.text()?;
                }
                section::PLACES => get_places(&mut s, &mut p)?,
                _ if id % 2 == 1 => continue,
                _ => return Err(BytesError::UnknownSection(id)),
            }
            if !s.is_empty() {
                return Err(BytesError::Invalid(format!("section 0x{id:04x} is longer than its content")));
            }
        }
        if let Some(id) = missing.first() {
            return Err(BytesError::Invalid(format!("the required section 0x{id:04x} is missing")));
        }
        let nodes: usize = p.functions.iter().map(|f| f.nodes.len()).sum();
        if nodes > MAX_NODES {
            return Err(BytesError::Limit(format!("{nodes} nodes")));
        }
        shape::check(&p).map_err(BytesError::Shape)?;
        Ok(p)
    }
}

fn list<T>(w: &mut Writer, items: &[T], mut put: impl FnMut(&mut Writer, &T)) {
    w.size(items.len());
    for x in items {
        put(w, x);
    }
}

fn get_list<'a, T>(
    r: &mut Reader<'a>,
    mut get: impl FnMut(&mut Reader<'a>) -> Result<T, BytesError>,
) -> Result<Vec<T>, BytesError> {
    let n = r.structures()?;
    (0..n).map(|_| get(r)).collect()
}

fn sizes(r: &mut Reader<'_>) -> Result<Vec<usize>, BytesError> {
    let shape = Vec::<usize>::get(r)?;
    limits::elements(&shape).map_err(BytesError::Limit)?;
    Ok(shape)
}

fn put_input(w: &mut Writer, i: &RuleInput) {
    w.text(&i.name);
    w.bytes.push(i.role as u8);
    i.raw.put(w);
    w.size(i.count.unwrap_or(0));
    w.size(i.heads.unwrap_or(0));
    i.shape.put(w);
}

fn get_input(r: &mut Reader<'_>) -> Result<RuleInput, BytesError> {
    let some = |n: usize| (n > 0).then_some(n);
    Ok(RuleInput {
        name: r.name()?,
        role: match r.u8()? {
            0 => Role::Query,
            1 => Role::Key,
            2 => Role::Value,
            3 => Role::Gate,
            k => return Err(BytesError::Invalid(format!("input role {k}"))),
        },
        raw: bool::get(r)?,
        count: some(r.size()?),
        heads: some(r.size()?),
        shape: sizes(r)?,
    })
}

fn put_type(w: &mut Writer, ty: &Type) {
    match ty {
        Type::Tensor(t) => {
            w.bytes.push(0);
            w.bytes.push(t.dtype as u8);
            // The empty name stands for no axis: an axis always has a name.
            w.text(t.axis.as_deref().unwrap_or(""));
            t.shape.put(w);
        }
        Type::Tuple(ts) => {
            w.bytes.push(1);
            list(w, ts, put_type);
        }
        Type::Memory(slot) => {
            w.bytes.push(2);
            w.text(slot);
        }
    }
}

fn get_type(r: &mut Reader<'_>) -> Result<Type, BytesError> {
    Ok(match r.u8()? {
        0 => Type::Tensor(TensorType {
            dtype: match r.u8()? {
                0 => DType::Float,
                1 => DType::Int,
                2 => DType::Mask,
                k => return Err(BytesError::Invalid(format!("element kind {k}"))),
            },
            axis: Some(axis(r)?).filter(|a| !a.is_empty()),
            shape: sizes(r)?,
        }),
        2 => Type::Memory(r.name()?),
        // Several values are taken apart where they arise; no function takes them.
        k => return Err(BytesError::Invalid(format!("type {k} of an argument"))),
    })
}

fn axis(r: &mut Reader<'_>) -> Result<String, BytesError> {
    let name = r.name()?;
    if name.len() > limits::MAX_AXIS_NAME {
        return Err(BytesError::Limit(format!("the name of a sequence axis has {} bytes", name.len())));
    }
    Ok(name)
}

fn get_function(r: &mut Reader<'_>) -> Result<Function, BytesError> {
    Ok(Function {
        name: r.name()?,
        arguments: get_list(r, |r| Ok(Argument { name: r.name()?, ty: get_type(r)? }))?,
        parameters: get_list(r, |r| {
            Ok(Parameter {
                name: r.name()?,
                shape: sizes(r)?,
                scope: match r.u8()? {
                    0 => Scope::Head,
                    1 => Scope::Layer,
                    2 => Scope::Model,
                    k => return Err(BytesError::Invalid(format!("parameter scope {k}"))),
                },
                training: match r.u8()? {
                    0 => Training::Trained { decay: false },
                    1 => Training::Trained { decay: true },
                    2 => Training::Constant,
                    3 => Training::Redrawn,
                    k => return Err(BytesError::Invalid(format!("parameter training {k}"))),
                },
                init: u32::get(r)?,
            })
        })?,
        nodes: get_list(r, |r| Ok(Node { op: Op::read(r)?, operands: Vec::<u32>::get(r)?, span: Span::default() }))?,
        outputs: get_list(r, |r| Ok(Output { name: r.name()?, node: u32::get(r)? }))?,
    })
}

fn get_places(r: &mut Reader<'_>, p: &mut Program) -> Result<(), BytesError> {
    p.files = Vec::<String>::get(r)?;
    let mismatch = || BytesError::Invalid("source places that do not match the functions".into());
    if r.structures()? != p.functions.len() {
        return Err(mismatch());
    }
    for f in &mut p.functions {
        if r.count()? != f.nodes.len() {
            return Err(mismatch());
        }
        for n in &mut f.nodes {
            n.span = Span { file: u32::get(r)?, line: u32::get(r)?, column: u32::get(r)? };
        }
    }
    Ok(())
}
