//! What stands before and after a recurrent net.

use fwp_sdk::prelude::*;

config! {
    /// From symbols to vectors, and from the hidden vector to logits.
    pub struct Ends {
        /// Features of a symbol's embedding.
        embedding: usize = 100,
        /// Units of a ReLU layer between the hidden vector and the logits; 0 is no such layer.
        readout: usize = 0,
        /// Standard deviation of the embeddings; 0 is 1/sqrt(embedding).
        embedding_std: f64 = 0.0,
        /// Probability with which embeddings and the units before the logits are dropped while training.
        dropout: f64 = 0.0,
    }
    validate(me) {
        if me.embedding == 0 { return Err("`embedding`: expected at least 1, got 0".into()); }
        if me.embedding_std < 0.0 { return Err(format!("`embedding_std`: expected a number from 0, got {}", me.embedding_std)); }
        if !(0.0..1.0).contains(&me.dropout) {
            return Err(format!("`dropout`: expected a probability from 0 and below 1, got {}", me.dropout));
        }
        Ok(())
    }
}

impl Ends {
    /// From the task's tokens through `net` to its logits.
    pub fn around(&self, net: &Net, cells: impl FnOnce(&Expr) -> Expr) {
        let vocab = net.task().input("tokens").vocab();
        let classes = net.task().output("logits").dim();
        let std = if self.embedding_std > 0.0 { self.embedding_std } else { (self.embedding as f64).powf(-0.5) };
        let x = net.embedding("embeddings", &net.input("tokens"), vocab, self.embedding, Init::normal(std));
        let mut h = cells(&x.dropout(self.dropout));
        if self.readout > 0 {
            h = net.affine("readout", &h, self.readout, Init::xavier_uniform(), Init::zeros()).relu();
        }
        let logits = net.affine("lm_head", &h.dropout(self.dropout), classes, Init::xavier_uniform(), Init::zeros());
        net.output("logits", &logits);
    }
}

/// Refuses sizes of 0.
pub fn positive(sizes: &[(&str, usize)]) -> Result<(), String> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((name, _)) => Err(format!("`{name}`: expected at least 1, got 0")),
        None => Ok(()),
    }
}
