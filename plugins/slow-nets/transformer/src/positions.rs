//! Where a token stands: added to the embeddings, or turned into queries and keys.

use fwp_sdk::prelude::*;

choices! {
    /// What is added to the embeddings to say where a token stands.
    pub enum Positions {
        /// Nothing.
        None = "none",
        /// A trained vector for each place up to the task's longest sequence.
        Learned = "learned",
        /// [sin(p w_i); cos(p w_i)] with w_i = 10000^(-2 i / width) (Vaswani et al. 2017, in the order of Transformer-XL).
        Sinusoidal = "sinusoidal",
    }
}

impl Positions {
    /// Embeddings `[width]` with their places.
    pub fn add(self, net: &Net, x: &Expr, init: Init) -> Expr {
        let width = x.shape()[0];
        match self {
            Positions::None => x.clone(),
            Positions::Learned => {
                let longest = net.task().max_len;
                x + net.embedding("positions", &x.position(), longest, width, init)
            }
            Positions::Sinusoidal => {
                let rates = (0..width / 2).map(|i| 1e4f64.powf(-2.0 * i as f64 / width as f64)).collect();
                let angle = x.position().to_float() * net.table(&[width / 2], rates);
                x + concat(0, &[&angle.sin(), &angle.cos()])
            }
        }
    }
}

choices! {
    /// How queries and keys are turned by their place p, pair after pair of features.
    pub enum Rotary {
        /// Not at all.
        None = "none",
        /// Features i and i + d/2 by the angle p base^(-2i/d) (Su et al. 2021, in the order of GPT-NeoX).
        Halves = "halves",
        /// Features 2i and 2i + 1 by the angle p base^(-2i/d) (Su et al. 2021).
        Pairs = "pairs",
        /// As `pairs` with the angle p base^(-i/(d/2 - 1)) (RetNet's code).
        Retnet = "retnet",
        /// As `pairs`; in addition queries are multiplied by z_i^(p/512) and keys by z_i^(-p/512), z_i = (2i/d + 0.4) / 1.4
        /// (xPos: Sun et al. 2022).
        Xpos = "xpos",
    }
}

/// Which side of an inner product is turned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Query,
    Key,
}

impl Rotary {
    /// Vectors `[.., d]` turned by their place.
    pub fn turn(self, net: &Net, x: &Expr, side: Side, base: f64) -> Expr {
        let shape = x.shape();
        let d = *shape.last().unwrap_or(&0);
        if self != Rotary::None && !d.is_multiple_of(2) {
            refuse(format!("`rotary`: features are turned in pairs, and a key has {d}"));
        }
        let position = x.position();
        match self {
            Rotary::None => x.clone(),
            Rotary::Halves => x.rotary(&position, base, false),
            Rotary::Pairs => x.rotary(&position, base, true),
            Rotary::Retnet if d == 2 => x.rotary(&position, base, true),
            // base^(-2i/d') with d' = d - 2.
            Rotary::Retnet => x.rotary(&position, base.powf(d as f64 / (d as f64 - 2.0)), true),
            Rotary::Xpos => {
                let sign = if side == Side::Query { 1.0 } else { -1.0 };
                // Of features 2i and 2i + 1 alike.
                let rate = |i: usize| sign / 512.0 * (((i / 2 * 2) as f64 / d as f64 + 0.4) / 1.4).ln();
                let scale = (position.to_float() * net.table(&[d], (0..d).map(rate).collect())).exp();
                let mut all = scale;
                for size in shape[..shape.len() - 1].iter().rev() {
                    all = all.expand(0, *size);
                }
                x.rotary(&position, base, true) * all
            }
        }
    }
}
