//! The associative LSTM.

use fwp_sdk::prelude::*;

use crate::ends::{Ends, positive};

config! {
    /// Associative LSTM: a cell of complex vectors in several copies, written and read with keys (a holographic reduced
    /// representation). No fast weights, so a recipe has neither [update_rule] nor [feature_map].
    ///
    ///     [f; i; o; u; r; s] = W x_t + U h_{t-1} + b
    ///     c_k = sigmoid(f) * c_k + (P_k bound(r)) (sigmoid(i) * bound(u))           for each copy k
    ///     h_t = sigmoid(o) * bound(1/n sum_k (P_k bound(s)) c_k)
    ///
    /// where x [embedding]; h [hidden], 0 before the first step, is a complex vector of hidden/2 elements, the real parts first, and
    /// so are u and the keys r and s; f, i, o [hidden/2] gate real and imaginary part alike; products of complex vectors are
    /// elementwise; bound(z) = z / max(1, |z|); P_k permutes the elements, drawn once for each copy and never trained.
    /// Weights and biases are drawn from U(-1/sqrt(hidden), 1/sqrt(hidden)); `forget_bias` is added to the bias of f.
    pub struct AssociativeLstm {
        /// Size of the hidden vector, twice the number of complex elements.
        hidden: usize = 50,
        /// Number n of copies of the memory.
        copies: usize = 4,
        /// Added to the forget gate's initial bias.
        forget_bias: f64 = 1.0,
    }
    with {
        /// Embedding and logits.
        ends: Ends,
    }
    validate(me) {
        positive(&[("hidden", me.hidden), ("copies", me.copies)])?;
        if !me.hidden.is_multiple_of(2) {
            return Err(format!("`hidden`: a complex vector has an even number of parts, not {}", me.hidden));
        }
        Ok(())
    }
}

/// A complex vector `[n]` in two.
struct Complex {
    re: Expr,
    im: Expr,
}

impl Complex {
    fn of(parts: &Expr) -> Complex {
        let n = parts.shape()[0] / 2;
        Complex { re: parts.slice(0, 0, n), im: parts.slice(0, n, n) }
    }
    /// No element longer than 1.
    fn bound(&self) -> Complex {
        // The root of max(1, |z|^2) is that of 1 within, where |z| would have no gradient at 0.
        let by = (self.re.square() + self.im.square()).max(1.0).sqrt();
        Complex { re: &self.re / &by, im: &self.im / by }
    }
    fn times(&self, other: &Complex) -> Complex {
        Complex { re: &self.re * &other.re - &self.im * &other.im, im: &self.re * &other.im + &self.im * &other.re }
    }
    fn scaled(&self, by: &Expr) -> Complex {
        Complex { re: &self.re * by, im: &self.im * by }
    }
    /// The same for each of `copies`: `[copies n]`.
    fn repeated(&self, copies: usize) -> Complex {
        let repeat = |x: &Expr| x.expand(0, copies).reshape(&[copies * x.shape()[0]]);
        Complex { re: repeat(&self.re), im: repeat(&self.im) }
    }
}

/// Matrices P_k of random permutations of `n`, one below the other: `[copies n, n]`.
fn permutations(copies: usize, n: usize) -> Init {
    Init::program(move |r, _| {
        let one = |_| {
            // The rank of each of n random numbers among them.
            let u = r.uniform(&[n]);
            let rank = u.expand(0, n).less(u.expand(1, n)).to_float().sum_over_axes(&[1]);
            rank.expand(1, n).equal(r.arange(n).to_float().expand(0, n)).to_float()
        };
        let all: Vec<Expr> = (0..copies).map(one).collect();
        concat(0, &all.iter().collect::<Vec<_>>())
    })
}

impl SlowNet for AssociativeLstm {
    const NAME: &'static str = "associative-lstm";
    const CITATION: &'static str = "Danihelka, Wayne, Uria, Kalchbrenner, Graves 2016, arXiv 1602.03032, section 4";

    fn forward(&self, net: &mut Net) {
        let net = &*net;
        let (n, copies) = (self.hidden / 2, self.copies);
        let bound = (self.hidden as f64).powf(-0.5);
        let forget = self.forget_bias;
        // Three gates of n, and u, r and s of 2 n.
        let total = 9 * n;
        let bias = Init::program(move |r, shape| {
            r.uniform(shape) * (2.0 * bound) - bound + r.arange(total).less(n as i64).to_float() * forget
        });
        self.ends.around(net, |x| {
            let given = net.affine("x_proj", x, total, Init::uniform(bound), bias);
            let (h0, c0) = (net.full(&[2 * n], 0.0), net.full(&[copies * n], 0.0));
            let (_, h) = net.recurrent("cell", &[&h0, &c0, &c0], &[&given], |net, state, given| {
                let all = &given[0] + net.linear("h_proj", &state[0], total, Init::uniform(bound));
                let parts = all.split(0, &[n, n, n, 2 * n, 2 * n, 2 * n]);
                let [f, i, o] = [0, 1, 2].map(|k| parts[k].sigmoid());
                let [u, r, s] = [3, 4, 5].map(|k| Complex::of(&parts[k]).bound());
                let permute = net.fixed("permutations", &[copies * n, n], permutations(copies, n));
                let key = |z: &Complex| Complex { re: permute.matvec(&z.re), im: permute.matvec(&z.im) };

                let written = key(&r).times(&u.scaled(&i).repeated(copies));
                let f = f.expand(0, copies).reshape(&[copies * n]);
                let c = Complex { re: &f * &state[1] + written.re, im: &f * &state[2] + written.im };
                let read = key(&s).times(&c);
                let mean = |x: &Expr| x.reshape(&[copies, n]).mean_over_axes(&[0]);
                let h = Complex { re: mean(&read.re), im: mean(&read.im) }.bound().scaled(&o);
                let h = concat(0, &[&h.re, &h.im]);
                (vec![h.clone(), c.re, c.im], vec![h])
            });
            h[0].clone()
        });
    }
}
