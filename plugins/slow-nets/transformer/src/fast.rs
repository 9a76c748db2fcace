//! Fast weights in the place of attention: how a rule's inputs are made of the residual stream, and what follows its output.

use std::collections::BTreeMap;

use fwp_sdk::prelude::*;
use fwp_sdk::program::{Role, RuleInput, SlotInterface};

use crate::attention::divides;
use crate::positions::{Rotary, Side};
use crate::stack::Stack;

choices! {
    /// What follows the projection (and convolution) of queries, keys and values.
    pub enum Activation {
        /// Nothing.
        None = "none",
        /// x sigmoid(x)
        Silu = "silu",
    }
}

choices! {
    /// How every head's output is normalised.
    pub enum OutputNorm {
        /// Not at all.
        None = "none",
        /// By its root mean square, with one trained gain for all heads.
        Rms = "rms",
        /// By mean and variance, with one trained gain and bias for all heads.
        Layer = "layer",
        /// By mean and variance of the head, with a trained gain and bias for every head (GroupNorm, as RetNet and RWKV).
        Group = "group",
    }
}

choices! {
    /// What the normalised output is multiplied by.
    pub enum OutputGate {
        /// Nothing.
        None = "none",
        /// silu(W y)
        Silu = "silu",
        /// sigmoid(W y)
        Sigmoid = "sigmoid",
    }
}

config! {
    /// Heads and their sizes.
    pub struct Heads {
        /// Number of heads.
        heads: usize = 4,
        /// Size of a head's key and query before the feature map. Absent is width / heads.
        key_dim: Option<usize> = None,
        /// Size of a head's value; 2 * key_dim is the value expansion 2 of RetNet and Gated DeltaNet. Absent is width / heads.
        value_dim: Option<usize> = None,
    }
    validate(me) {
        if me.heads == 0 { return Err("`heads`: expected at least 1, got 0".into()); }
        for (name, value) in [("key_dim", me.key_dim), ("value_dim", me.value_dim)] {
            if value == Some(0) { return Err(format!("`{name}`: expected at least 1, got 0")); }
        }
        Ok(())
    }
}

impl Heads {
    /// Refuses a width that cannot be parted where sizes follow from it.
    pub fn fit(&self, width: usize) -> Result<(), String> {
        for (name, given) in [("key_dim", self.key_dim), ("value_dim", self.value_dim)] {
            if given.is_none() && !width.is_multiple_of(self.heads) {
                let heads = self.heads;
                return Err(format!("`heads`: {heads} does not divide the width {width}; choose another number or set `{name}`"));
            }
        }
        Ok(())
    }

    /// The fast weights of these sizes.
    pub fn memory(&self, width: usize) -> Memory {
        let size = |given: Option<usize>| given.unwrap_or(width / self.heads);
        Memory { heads: self.heads, key: size(self.key_dim), value: size(self.value_dim) }
    }
}

config! {
    /// How the inputs of a rule are made.
    pub struct Projections {
        /// Number of heads of keys, values and gates, each of which serves heads / kv_heads heads of queries. Absent is all heads.
        kv_heads: Option<usize> = None,
        /// Number of heads of queries and keys, each of which serves heads / qk_heads heads of values (grouped values, as in Gated
        /// DeltaNet). Absent is all heads.
        qk_heads: Option<usize> = None,
        /// Steps that a convolution sees; 0 is no convolution.
        conv: usize = 4,
        /// Names of the inputs that get convolution and activation. Absent is all queries, keys and values.
        conv_inputs: Option<Vec<String>> = None,
        /// What follows the projection and convolution.
        conv_activation: Activation = Activation::Silu,
        /// How queries and keys are turned by their place, before the feature map.
        rotary: Rotary = Rotary::None,
        /// Base of the angles of `rotary`.
        rotary_base: f64 = 1e4,
        /// Whether every input is made of a mixture of this step and the last, y + m * (y' - y) with m [width] trained from 1/2
        /// (RWKV).
        token_shift: bool = false,
        /// Inputs with a projection of low rank W_2 f(W_1 y) + b: a table of ranks by name, such as { a = 16 } for GLA.
        low_rank: BTreeMap<String, usize> = BTreeMap::new(),
        /// Whether f is tanh (RWKV) and not the identity.
        low_rank_tanh: bool = false,
        /// Rank of the gate s = sigmoid(W_2 W_1 y + b) with which values are drawn to those of the first layer,
        /// v + s * (v_first - v) (RWKV-7); 0 is none of this.
        value_residual: usize = 0,
    }
    validate(me) {
        if me.kv_heads.is_some() && me.qk_heads.is_some() {
            return Err("`kv_heads`: keys cannot be grouped in two ways; leave `qk_heads` out".into());
        }
        if let Some(name) = me.low_rank.iter().find(|(_, rank)| **rank == 0).map(|(name, _)| name) {
            return Err(format!("`low_rank`: the rank of `{name}` must be at least 1"));
        }
        if me.rotary_base <= 0.0 { return Err(format!("`rotary_base`: expected a number above 0, got {}", me.rotary_base)); }
        Ok(())
    }
}

config! {
    /// What follows the output of a rule.
    pub struct Readout {
        /// How every head's output is normalised. Extra outputs of a rule (RWKV-7's bonus) are added afterwards.
        output_norm: OutputNorm = OutputNorm::Rms,
        /// What the normalised output is multiplied by.
        output_gate: OutputGate = OutputGate::None,
        /// Rank of the gate's map W_2 W_1 y + b (KDA); 0 is a full matrix without bias.
        output_gate_rank: usize = 0,
    }
}

/// W_2 f(W_1 y) + b: parameters `NAME.0.weight`, `NAME.1.weight` and `NAME.1.bias`.
fn low_rank(net: &Net, stack: &Stack, name: &str, y: &Expr, out: usize, rank: usize, tanh: bool) -> Expr {
    let inner = net.linear(&format!("{name}.0"), y, rank, stack.init());
    let inner = if tanh { inner.tanh() } else { inner };
    net.affine(&format!("{name}.1"), &inner, out, stack.init(), Init::zeros())
}

/// Groups `[g, ..]` written out for `heads` heads: neighbouring heads share one.
fn to_heads(x: &Expr, heads: usize) -> Expr {
    let shape = x.shape();
    if shape[0] == heads {
        return x.clone();
    }
    x.expand(1, heads / shape[0]).reshape(&[&[heads], &shape[1..]].concat())
}

impl Projections {
    /// Refuses names that no input of the rule has, and numbers of heads that do not divide.
    fn fit(&self, slot: &SlotInterface) {
        let known = |name: &str| slot.inputs.iter().any(|i| i.name == name);
        let names = || slot.inputs.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", ");
        let listed = self.conv_inputs.iter().flatten().map(|n| ("conv_inputs", n));
        for (key, name) in listed.chain(self.low_rank.keys().map(|n| ("low_rank", n))) {
            if !known(name) {
                refuse(format!("`{key}`: rule `{}` has no input `{name}`; it has {}", slot.rule, names()));
            }
        }
        for (name, part) in [("kv_heads", self.kv_heads), ("qk_heads", self.qk_heads)] {
            if let Some(part) = part
                && let Err(message) = divides(name, part, slot.heads, "the number of heads")
            {
                refuse(message);
            }
        }
    }

    /// Number of heads in which an input is projected.
    fn groups(&self, input: &RuleInput, slot: &SlotInterface) -> usize {
        if let Some(own) = input.heads {
            return own;
        }
        let grouped = match input.role {
            Role::Query => self.qk_heads,
            Role::Key => self.qk_heads.or(self.kv_heads),
            Role::Value | Role::Gate => self.kv_heads,
        };
        grouped.unwrap_or(slot.heads)
    }

    /// y, or a mixture of it and the last step's.
    fn shifted(&self, net: &Net, name: &str, y: &Expr) -> Expr {
        if !self.token_shift {
            return y.clone();
        }
        let mix = net.parameter(&format!("attn.{name}_mix"), &y.shape(), Init::constant(0.5));
        y + mix * (y.shift(1) - y)
    }

    fn convolved(&self, input: &RuleInput) -> bool {
        match &self.conv_inputs {
            Some(names) => names.contains(&input.name),
            None => input.role != Role::Gate,
        }
    }

    /// One input of the rule from `[width]`: `[heads, count, size]` in the shape that the rule wants.
    fn input(&self, net: &Net, stack: &Stack, slot: &SlotInterface, input: &RuleInput, y: &Expr) -> Expr {
        let wanted = slot.given_shape(input);
        let mut shape = wanted.clone();
        shape[0] = self.groups(input, slot);
        let name = format!("attn.{}_proj", input.name);
        let y = self.shifted(net, &input.name, y);
        let out = shape.iter().product();
        let mut x = match self.low_rank.get(&input.name) {
            Some(rank) => low_rank(net, stack, &name, &y, out, *rank, self.low_rank_tanh),
            None => stack.linear(net, &name, &y, out),
        };
        if self.convolved(input) {
            if self.conv > 0 {
                let init = Init::uniform(1.0 / (self.conv as f64).sqrt());
                x = net.causal_conv(&format!("attn.{}_conv1d", input.name), &x, self.conv, init);
            }
            if self.conv_activation == Activation::Silu {
                x = x.silu();
            }
        }
        let mut x = x.reshape(&shape);
        if input.mapped() {
            let side = if input.role == Role::Query { Side::Query } else { Side::Key };
            x = self.rotary.turn(net, &x, side, self.rotary_base);
        }
        to_heads(&x, wanted[0])
    }

    /// All inputs of the rule by name.
    pub fn inputs(&self, net: &Net, stack: &Stack, slot: &SlotInterface, y: &Expr) -> Vec<(String, Expr)> {
        self.fit(slot);
        slot.inputs.iter().map(|i| (i.name.clone(), self.input(net, stack, slot, i, y))).collect()
    }

    /// Draws the values among `inputs` to those of the first layer, or hands these on from there: `first` holds them, one a value.
    pub fn value_residual(
        &self,
        net: &Net,
        stack: &Stack,
        slot: &SlotInterface,
        y: &Expr,
        inputs: &mut [(String, Expr)],
        first: Option<&[Expr]>,
    ) -> Vec<Expr> {
        let values = slot.inputs.iter().zip(inputs).filter(|(i, _)| i.role == Role::Value);
        let mut handed = Vec::new();
        for (number, (input, (_, v))) in values.enumerate() {
            let Some(first) = first else {
                handed.push(v.clone());
                continue;
            };
            let shape = v.shape();
            let Some(v_first) = first.get(number).filter(|f| f.shape() == shape) else {
                refuse(format!("`value_residual`: value `{}` has another shape than that of the first layer", input.name));
            };
            let y = self.shifted(net, &format!("{}_residual", input.name), y);
            let out = shape.iter().product();
            let name = format!("attn.{}_residual_proj", input.name);
            let s = low_rank(net, stack, &name, &y, out, self.value_residual, false).sigmoid().reshape(&shape);
            *v = &*v + s * (v_first - &*v);
            handed.push(v_first.clone());
        }
        handed
    }
}

impl Readout {
    /// From the output of a rule, `[heads, ..]` and then its extra outputs, to `[width]`.
    pub fn read(
        &self,
        net: &Net,
        stack: &Stack,
        projections: &Projections,
        slot: &SlotInterface,
        y: &Expr,
        parts: &[Expr],
    ) -> Expr {
        let per_head: usize = slot.output.iter().product();
        let all = slot.heads * per_head;
        let o = parts[0].reshape(&[slot.heads, per_head]);
        let eps = stack.norm_eps;
        let mut o = match self.output_norm {
            OutputNorm::None => o,
            OutputNorm::Rms => net.rms_norm("attn.o_norm", &o, eps),
            OutputNorm::Layer => net.layer_norm("attn.o_norm", &o, eps),
            OutputNorm::Group => {
                let gain = net.parameter("attn.o_norm.weight", &[all], Init::ones()).reshape(&[slot.heads, per_head]);
                let bias = net.parameter("attn.o_norm.bias", &[all], Init::zeros()).reshape(&[slot.heads, per_head]);
                o.layer_norm(eps) * gain + bias
            }
        };
        for ((name, shape), extra) in slot.extras.iter().zip(&parts[1..]) {
            if *shape != slot.output {
                refuse(format!(
                    "rule `{}` gives `{name}` {shape:?} beside its output {:?}, and there is no use for it",
                    slot.rule, slot.output
                ));
            }
            o = o + extra.reshape(&[slot.heads, per_head]);
        }
        let mut o = o.reshape(&[all]);
        if self.output_gate != OutputGate::None {
            if slot.inputs.iter().any(|i| i.name == "g") {
                let rule = &slot.rule;
                refuse(format!("`output_gate`: its matrix is named `g_proj`, and so is that of input `g` of rule `{rule}`"));
            }
            let y = projections.shifted(net, "g", y);
            let gate = match self.output_gate_rank {
                0 => net.linear("attn.g_proj", &y, all, stack.init()),
                rank => low_rank(net, stack, "attn.g_proj", &y, all, rank, false),
            };
            o = o * if self.output_gate == OutputGate::Silu { gate.silu() } else { gate.sigmoid() };
        }
        stack.linear(net, "attn.o_proj", &o, stack.width)
    }
}

/// Pairs of names and values as nodes of fast weights take them.
pub fn by_name(inputs: &[(String, Expr)]) -> Vec<(&str, &Expr)> {
    inputs.iter().map(|(name, x)| (name.as_str(), x)).collect()
}
