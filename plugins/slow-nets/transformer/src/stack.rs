//! Embedding, blocks with residuals, and head: what is around the mixing of tokens.

use fwp_sdk::prelude::*;

use crate::positions::Positions;

choices! {
    /// Where the norm of each half of a block stands.
    pub enum NormPlace {
        /// x + f(norm(x)), and one more norm before the head.
        Before = "before",
        /// norm(x + f(x)).
        After = "after",
    }
}

choices! {
    /// How a vector is normalised.
    pub enum Norm {
        /// x / sqrt(mean(x^2) + eps), with a trained gain.
        Rms = "rms",
        /// (x - mean) / sqrt(variance + eps), with a trained gain and bias.
        Layer = "layer",
    }
}

choices! {
    /// Which linear maps have a bias.
    pub enum Bias {
        /// None of them.
        None = "none",
        /// Those of the MLP and of the head.
        Mlp = "mlp",
        /// All.
        All = "all",
    }
}

choices! {
    /// What the MLP of a block computes.
    pub enum Mlp {
        /// W_down (silu(W_gate y) * W_up y)
        SwiGlu = "swiglu",
        /// W_down relu(W_up y)
        Relu = "relu",
        /// W_down relu(W_up y)^2
        SquaredRelu = "relu2",
        /// W_down gelu(W_up y)
        Gelu = "gelu",
    }
}

config! {
    /// The residual stream and everything around the mixing of tokens.
    pub struct Stack {
        /// Features of the residual stream.
        width: usize = 128,
        /// Number of blocks.
        layers: usize = 4,
        /// Where the norm of each half of a block stands.
        norm_place: NormPlace = NormPlace::Before,
        /// How the residual stream is normalised.
        norm: Norm = Norm::Rms,
        /// Added to the mean square or variance under the root of every norm.
        norm_eps: f64 = 1e-6,
        /// Which linear maps have a bias.
        bias: Bias = Bias::None,
        /// Hidden features of the MLP; 0 is no MLP. Absent is 2 * width.
        mlp: Option<usize> = None,
        /// What the MLP computes.
        mlp_form: Mlp = Mlp::SwiGlu,
        /// What is added to the embeddings to say where a token stands.
        positions: Positions = Positions::None,
        /// Whether embeddings are multiplied by sqrt(width).
        scale_embeddings: bool = false,
        /// Probability with which embeddings, the outputs of both halves of a block, and hidden features of an MLP without gate are
        /// dropped while training.
        dropout: f64 = 0.0,
        /// Standard deviation of the initial matrices; a convolution of n steps starts as U(-1/sqrt(n), 1/sqrt(n)), biases at 0.
        init_std: f64 = 0.02,
        /// Whether the head is the embedding's own matrix.
        tie_embeddings: bool = false,
    }
    validate(me) {
        for (name, value) in [("width", me.width), ("layers", me.layers)] {
            if value == 0 { return Err(format!("`{name}`: expected at least 1, got 0")); }
        }
        for (name, value) in [("norm_eps", me.norm_eps), ("init_std", me.init_std)] {
            if value < 0.0 { return Err(format!("`{name}`: expected a number from 0, got {value}")); }
        }
        if !(0.0..1.0).contains(&me.dropout) {
            return Err(format!("`dropout`: expected a probability from 0 and below 1, got {}", me.dropout));
        }
        if me.positions == Positions::Sinusoidal && !me.width.is_multiple_of(2) {
            return Err(format!("`positions`: sines and cosines need an even width, not {}", me.width));
        }
        Ok(())
    }
}

/// Neighbouring layers that are alike and described once.
struct Run<K> {
    first: usize,
    count: usize,
    kind: K,
}

impl Stack {
    pub fn init(&self) -> Init {
        Init::normal(self.init_std)
    }

    /// A norm over the last axis, as the residual stream has it.
    pub fn normalise(&self, net: &Net, name: &str, x: &Expr) -> Expr {
        match self.norm {
            Norm::Rms => net.rms_norm(name, x, self.norm_eps),
            Norm::Layer => net.layer_norm(name, x, self.norm_eps),
        }
    }

    /// A linear map, with a bias where all have one.
    pub fn linear(&self, net: &Net, name: &str, x: &Expr, out: usize) -> Expr {
        self.maybe_affine(net, name, x, out, self.bias == Bias::All)
    }

    fn maybe_affine(&self, net: &Net, name: &str, x: &Expr, out: usize, bias: bool) -> Expr {
        if bias { net.affine(name, x, out, self.init(), Init::zeros()) } else { net.linear(name, x, out, self.init()) }
    }

    /// x with one half of a block added, the norm where it belongs.
    fn half<T>(&self, net: &Net, norm: &str, x: &Expr, f: impl FnOnce(&Expr) -> (Expr, T)) -> (Expr, T) {
        match self.norm_place {
            NormPlace::Before => {
                let (y, more) = f(&self.normalise(net, norm, x));
                (x + y.dropout(self.dropout), more)
            }
            NormPlace::After => {
                let (y, more) = f(x);
                (self.normalise(net, norm, &(x + y.dropout(self.dropout))), more)
            }
        }
    }

    fn mlp(&self, net: &Net, y: &Expr, hidden: usize) -> Expr {
        let map = |name: &str, x: &Expr, out| self.maybe_affine(net, &format!("mlp.{name}"), x, out, self.bias != Bias::None);
        let up = || map("up_proj", y, hidden);
        let hidden = match self.mlp_form {
            Mlp::SwiGlu => map("gate_proj", y, hidden).silu() * up(),
            Mlp::Relu => up().relu().dropout(self.dropout),
            Mlp::SquaredRelu => up().relu().square().dropout(self.dropout),
            Mlp::Gelu => up().gelu().dropout(self.dropout),
        };
        map("down_proj", &hidden, self.width)
    }

    /// From the task's tokens to its logits.
    ///
    /// `kind` says which layers are alike. `mix` is the mixing of tokens of a layer of this kind: from `[width]` and what layers
    /// hand on, beginning with `start`, to `[width]` and what is handed on from there.
    pub fn forward<K: PartialEq>(
        &self,
        net: &Net,
        kind: impl Fn(usize) -> K,
        start: impl FnOnce(&Net, &Expr) -> Vec<Expr>,
        mix: impl Fn(&Net, &K, &Expr, &[Expr]) -> (Expr, Vec<Expr>),
    ) {
        let tokens = net.input("tokens");
        let vocab = net.task().input("tokens").vocab();
        let classes = net.task().output("logits").dim();
        let mut x = net.embedding("embeddings", &tokens, vocab, self.width, self.init());
        if self.scale_embeddings {
            x = x * (self.width as f64).sqrt();
        }
        let x = self.positions.add(net, &x, self.init()).dropout(self.dropout);

        let mut carried = start(net, &x);
        carried.insert(0, x);
        for run in self.runs(kind) {
            let given: Vec<&Expr> = carried.iter().collect();
            carried = net.blocks("layers", run.first, run.count, &given, |net, x| {
                let (y, mut handed) = self.half(net, "attn_norm", &x[0], |y| mix(net, &run.kind, y, &x[1..]));
                let hidden = self.mlp.unwrap_or(2 * self.width);
                let y = if hidden == 0 { y } else { self.half(net, "mlp_norm", &y, |y| (self.mlp(net, y, hidden), ())).0 };
                handed.insert(0, y);
                handed
            });
        }

        let mut x = carried.remove(0);
        if self.norm_place == NormPlace::Before {
            x = self.normalise(net, "norm", &x);
        }
        let logits = if self.tie_embeddings {
            if vocab != classes {
                refuse(format!("`tie_embeddings`: {vocab} symbols go in and {classes} logits come out; they must be as many"));
            }
            let logits = net.parameter("embeddings.weight", &[vocab, self.width], self.init()).matvec(&x);
            if self.bias == Bias::None { logits } else { logits + net.parameter("lm_head.bias", &[classes], Init::zeros()) }
        } else {
            self.maybe_affine(net, "lm_head", &x, classes, self.bias != Bias::None)
        };
        net.output("logits", &logits);
    }

    /// As [`Stack::forward`], where layers hand nothing on.
    pub fn forward_alone<K: PartialEq>(&self, net: &Net, kind: impl Fn(usize) -> K, mix: impl Fn(&Net, &K, &Expr) -> Expr) {
        self.forward(net, kind, |_, _| vec![], |net, kind, y, _| (mix(net, kind, y), vec![]));
    }

    fn runs<K: PartialEq>(&self, kind: impl Fn(usize) -> K) -> Vec<Run<K>> {
        let mut runs: Vec<Run<K>> = Vec::new();
        for layer in 0..self.layers {
            let kind = kind(layer);
            match runs.last_mut() {
                Some(run) if run.kind == kind => run.count += 1,
                _ => runs.push(Run { first: layer, count: 1, kind }),
            }
        }
        runs
    }
}
