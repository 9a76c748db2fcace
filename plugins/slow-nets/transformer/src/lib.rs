//! A transformer whose token mixing is fast weights.

use fwp_sdk::prelude::*;
use fwp_sdk::program::{Role, SlotInterface};

choices! {
    /// What follows the projection (and convolution) of queries, keys and values.
    pub enum Activation {
        /// Nothing.
        None = "none",
        /// x sigmoid(x)
        Silu = "silu",
    }
}

config! {
    /// Transformer with fast weights in the place of attention: the DeltaNet block, before each part a norm, after it a residual.
    ///
    ///     x = E[token]
    ///     in every layer:
    ///         y = norm(x)
    ///         q, k, v = silu(conv(W_q y)), silu(conv(W_k y)), silu(conv(W_v y)),     gate = W_g y
    ///         x = x + W_o norm_per_head(fast_weights(q, k, v, gates))
    ///         y = norm(x)
    ///         x = x + W_down (silu(W_gate y) * W_up y)
    ///     logits = W_head norm(x)
    ///
    /// where x, y [width]; norm is the root-mean-square norm with a trained gain; conv is a causal depthwise convolution;
    /// feature map, normalisation and activation of the gates are the recipe's map's and rule's.
    /// With `output_gate` the normalised output is multiplied by silu(W y) before W_o.
    /// No biases and no positions.
    ///
    /// Serves every rule: each of its inputs gets a projection named `attn.NAME_proj`, in all its heads and counts at once;
    /// queries, keys and values get convolution and activation, gates are linear.
    pub struct Transformer {
        /// Features of the residual stream.
        width: usize = 128,
        /// Number of blocks.
        layers: usize = 4,
        /// Number of heads.
        heads: usize = 4,
        /// Size of a head's key and query before the feature map. Absent is width / heads.
        key_dim: Option<usize> = None,
        /// Size of a head's value. Absent is width / heads.
        value_dim: Option<usize> = None,
        /// Steps that the convolution of queries, keys and values sees; 0 is no convolution.
        conv: usize = 4,
        /// What follows the projection and convolution of queries, keys and values.
        conv_activation: Activation = Activation::Silu,
        /// Hidden features of the gated MLP; 0 is no MLP. Absent is 2 * width.
        mlp: Option<usize> = None,
        /// Whether every head's output is normalised, with one trained gain for all heads.
        output_norm: bool = true,
        /// Whether the output is multiplied by a SiLU gate.
        output_gate: bool = false,
        /// Where the factor key_dim^-1/2 goes.
        query_scale: QueryScale = QueryScale::None,
        /// Added to the mean square under the root of every norm.
        norm_eps: f64 = 1e-6,
        /// Probability with which embeddings and the outputs of both parts of a block are dropped while training.
        dropout: f64 = 0.0,
        /// Standard deviation of the initial matrices; a convolution of n steps starts as U(-1/sqrt(n), 1/sqrt(n)).
        init_std: f64 = 0.02,
        /// Whether the head is the embedding's own matrix.
        tie_embeddings: bool = false,
    }
    validate(me) {
        for (name, value) in [("width", me.width), ("layers", me.layers), ("heads", me.heads)] {
            if value == 0 { return Err(format!("`{name}`: expected at least 1, got 0")); }
        }
        for (name, value) in [("key_dim", me.key_dim), ("value_dim", me.value_dim)] {
            if value == Some(0) { return Err(format!("`{name}`: expected at least 1, got 0")); }
            if value.is_none() && !me.width.is_multiple_of(me.heads) {
                return Err(format!("`heads`: {} does not divide the width {}; choose another number or set `{name}`", me.heads, me.width));
            }
        }
        for (name, value) in [("norm_eps", me.norm_eps), ("init_std", me.init_std)] {
            if value < 0.0 { return Err(format!("`{name}`: expected a number from 0, got {value}")); }
        }
        if !(0.0..1.0).contains(&me.dropout) {
            return Err(format!("`dropout`: expected a probability from 0 and below 1, got {}", me.dropout));
        }
        Ok(())
    }
}

impl Transformer {
    fn init(&self) -> Init {
        Init::normal(self.init_std)
    }

    /// Fast weights in the place of attention: [width] to [width] along time.
    fn mix(&self, net: &Net, slot: &SlotInterface, y: &Expr) -> Expr {
        let mut inputs = Vec::new();
        for input in &slot.inputs {
            let shape = slot.given_shape(input); // heads, count, size
            let mut x = net.linear(&format!("attn.{}_proj", input.name), y, shape.iter().product(), self.init());
            if input.role != Role::Gate {
                if self.conv > 0 {
                    let init = Init::uniform(1.0 / (self.conv as f64).sqrt());
                    x = net.causal_conv(&format!("attn.{}_conv1d", input.name), &x, self.conv, init);
                }
                if self.conv_activation == Activation::Silu {
                    x = x.silu();
                }
            }
            inputs.push((input.name.as_str(), x.reshape(&shape)));
        }
        let inputs: Vec<(&str, &Expr)> = inputs.iter().map(|(name, x)| (*name, x)).collect();
        let o = net.fast_weights("attn", slot, self.query_scale, &inputs).remove(0);

        let per_head: usize = slot.output.iter().product();
        let mut o = o.reshape(&[slot.heads, per_head]);
        if self.output_norm {
            o = net.rms_norm("attn.o_norm", &o, self.norm_eps);
        }
        let mut o = o.reshape(&[slot.heads * per_head]);
        if self.output_gate {
            if slot.inputs.iter().any(|i| i.name == "g") {
                refuse(format!(
                    "`output_gate`: its matrix is named `g_proj`, and so is that of input `g` of rule `{}`",
                    slot.rule
                ));
            }
            o = o * net.linear("attn.g_proj", y, slot.heads * per_head, self.init()).silu();
        }
        net.linear("attn.o_proj", &o, self.width, self.init())
    }

    fn block(&self, net: &Net, slot: &SlotInterface, x: &Expr) -> Expr {
        let y = net.rms_norm("attn_norm", x, self.norm_eps);
        let x = x + self.mix(net, slot, &y).dropout(self.dropout);
        let hidden = self.mlp.unwrap_or(2 * self.width);
        if hidden == 0 {
            return x;
        }
        let y = net.rms_norm("mlp_norm", &x, self.norm_eps);
        let gate = net.linear("mlp.gate_proj", &y, hidden, self.init()).silu();
        let up = net.linear("mlp.up_proj", &y, hidden, self.init());
        x + net.linear("mlp.down_proj", &(gate * up), self.width, self.init()).dropout(self.dropout)
    }
}

impl SlowNet for Transformer {
    const NAME: &'static str = "transformer";
    const CITATION: &'static str = "Yang, Wang, Zhang, Shen, Kim 2024, arXiv 2406.06484, section 3.3";

    fn memory(&self, _task: &TaskIo, _slot: &str) -> Memory {
        let size = |given: Option<usize>| given.unwrap_or(self.width / self.heads);
        Memory { heads: self.heads, key: size(self.key_dim), value: size(self.value_dim) }
    }

    fn layers(&self) -> usize {
        self.layers
    }

    fn forward(&self, net: &mut Net) {
        let net = &*net;
        let vocab = net.task().input("tokens").vocab();
        let classes = net.task().output("logits").dim();
        let mut x = net.embedding("embeddings", &net.input("tokens"), vocab, self.width, self.init()).dropout(self.dropout);

        // Neighbouring layers with one rule are described once.
        let mut first = 0;
        while first < self.layers {
            let slot = net.slot_of_layer(first);
            let count = (first..self.layers).take_while(|layer| net.slot_of_layer(*layer).name == slot.name).count();
            x = net.blocks("layers", first, count, &[&x], |net, x| vec![self.block(net, &slot, &x[0])]).remove(0);
            first += count;
        }

        let x = net.rms_norm("norm", &x, self.norm_eps);
        let logits = if self.tie_embeddings {
            if vocab != classes {
                refuse(format!("`tie_embeddings`: {vocab} symbols go in and {classes} logits come out; they must be as many"));
            }
            net.parameter("embeddings.weight", &[vocab, self.width], self.init()).matvec(&x)
        } else {
            net.linear("lm_head", &x, classes, self.init())
        };
        net.output("logits", &logits);
    }
}

fwp_sdk::export! { slow_nets: [Transformer] }

#[cfg(test)]
mod tests {
    use fwp_sdk::build::{Port, PortKind};
    use fwp_sdk::program::{Function, Op, Program, RuleInput, Training};
    use fwp_sdk::serde_json::{Value, json};
    use fwp_sdk::testing;

    use super::*;

    fn task() -> TaskIo {
        let port = |name: &str, kind| Port { name: name.into(), axis: Some("time".into()), kind };
        TaskIo {
            inputs: vec![port("tokens", PortKind::Symbol { vocab: 65 })],
            outputs: vec![port("logits", PortKind::Vector { dim: 65 })],
            max_len: 64,
        }
    }

    fn input(name: &str, role: Role, count: Option<usize>, shape: &[usize]) -> RuleInput {
        RuleInput { name: name.into(), role, raw: false, count, heads: None, shape: shape.into() }
    }

    /// The delta rule for the default sizes, with an identity map.
    fn delta(name: &str) -> SlotInterface {
        SlotInterface {
            name: name.into(),
            rule: "delta".into(),
            heads: 4,
            key_raw: 32,
            key: 32,
            value: 32,
            inputs: vec![
                input("q", Role::Query, None, &[32]),
                input("k", Role::Key, None, &[32]),
                input("v", Role::Value, None, &[32]),
                input("beta", Role::Gate, None, &[]),
            ],
            output: vec![32],
            extras: vec![],
        }
    }

    fn describe(config: Value) -> Result<Program, String> {
        testing::net::<Transformer>(config, &task(), &[(delta("main"), None)])
    }

    fn shapes(function: &Function) -> Vec<(&str, &[usize])> {
        function.parameters.iter().map(|p| (p.name.as_str(), &p.shape[..])).collect()
    }

    /// Every repetition of blocks: name, first layer, count, and the function that is repeated.
    fn blocks(program: &Program) -> Vec<(&str, usize, usize, &Function)> {
        let nodes = &program.entry("forward").unwrap().nodes;
        nodes
            .iter()
            .filter_map(|node| match &node.op {
                Op::Blocks { function, name, count, first, .. } => {
                    Some((name.as_str(), *first, *count, &program.functions[*function as usize]))
                }
                _ => None,
            })
            .collect()
    }

    /// Number of trained elements of the whole model.
    fn size(program: &Program) -> usize {
        let elements = |f: &Function| f.parameters.iter().map(|p| p.shape.iter().product::<usize>()).sum::<usize>();
        let repeated: usize = blocks(program).iter().map(|(_, _, count, f)| count * elements(f)).sum();
        elements(program.entry("forward").unwrap()) + repeated
    }

    #[test]
    fn names_and_shapes_are_those_of_the_published_checkpoints() {
        let program = describe(json!({})).unwrap();
        let forward = program.entry("forward").unwrap();
        assert_eq!(
            shapes(forward),
            [("embeddings.weight", &[65, 128][..]), ("norm.weight", &[128]), ("lm_head.weight", &[65, 128])]
        );
        let blocks = blocks(&program);
        let [("layers", 0, 4, block)] = blocks[..] else { panic!("one repetition of four layers") };
        assert_eq!(
            shapes(block),
            [
                ("attn_norm.weight", &[128][..]),
                ("attn.q_proj.weight", &[128, 128]),
                ("attn.q_conv1d.weight", &[128, 4]),
                ("attn.k_proj.weight", &[128, 128]),
                ("attn.k_conv1d.weight", &[128, 4]),
                ("attn.v_proj.weight", &[128, 128]),
                ("attn.v_conv1d.weight", &[128, 4]),
                ("attn.beta_proj.weight", &[4, 128]),
                ("attn.o_norm.weight", &[32]),
                ("attn.o_proj.weight", &[128, 128]),
                ("mlp_norm.weight", &[128]),
                ("mlp.gate_proj.weight", &[256, 128]),
                ("mlp.up_proj.weight", &[256, 128]),
                ("mlp.down_proj.weight", &[128, 256]),
            ]
        );
        // What the same model in PyTorch counts.
        assert_eq!(size(&program), 681_472);
        for parameter in forward.parameters.iter().chain(&block.parameters) {
            assert_eq!(parameter.training, Training::Trained { decay: parameter.shape.len() > 1 }, "{}", parameter.name);
        }
    }

    #[test]
    fn what_is_switched_off_leaves_no_parameters() {
        let off = json!({ "conv": 0, "mlp": 0, "output_norm": false, "tie_embeddings": true });
        let program = describe(off).unwrap();
        assert_eq!(shapes(program.entry("forward").unwrap()), [("embeddings.weight", &[65, 128][..]), ("norm.weight", &[128])]);
        let names: Vec<&str> = blocks(&program)[0].3.parameters.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "attn_norm.weight",
                "attn.q_proj.weight",
                "attn.k_proj.weight",
                "attn.v_proj.weight",
                "attn.beta_proj.weight",
                "attn.o_proj.weight"
            ]
        );
    }

    #[test]
    fn dropout_and_scale_reach_the_program() {
        let program = describe(json!({ "dropout": 0.1, "query_scale": "output", "output_gate": true })).unwrap();
        let dropped = |f: &Function| f.nodes.iter().filter(|n| n.op == Op::Dropout { p: 0.1 }).count();
        let block = blocks(&program)[0].3;
        assert_eq!((dropped(program.entry("forward").unwrap()), dropped(block)), (1, 2));
        assert!(block.nodes.iter().any(|n| matches!(&n.op, Op::FastWeights { scale, .. } if *scale == QueryScale::Output)));
        assert!(shapes(block).contains(&("attn.g_proj.weight", &[128, 128])));
    }

    #[test]
    fn layers_are_grouped_by_their_rule() {
        let slots = [(delta("main"), None), (delta("other"), Some(vec![1, 2, 4]))];
        let program = testing::net::<Transformer>(json!({ "layers": 6 }), &task(), &slots).unwrap();
        let found: Vec<(usize, usize)> = blocks(&program).iter().map(|(_, first, count, _)| (*first, *count)).collect();
        assert_eq!(found, [(0, 1), (1, 2), (3, 1), (4, 1), (5, 1)]);
    }

    #[test]
    fn counts_groups_of_heads_and_any_number_of_inputs_are_served() {
        let mut slot = delta("main");
        slot.inputs[1] = input("k", Role::Key, Some(3), &[32]);
        slot.inputs[2].heads = Some(2);
        slot.inputs[3] = input("decay", Role::Gate, None, &[32]);
        slot.output = vec![5];
        let program = testing::net::<Transformer>(json!({}), &task(), &[(slot, None)]).unwrap();
        let shapes = shapes(blocks(&program)[0].3);
        for wanted in [
            ("attn.k_proj.weight", &[4 * 3 * 32, 128]),
            ("attn.k_conv1d.weight", &[4 * 3 * 32, 4]),
            ("attn.v_proj.weight", &[2 * 32, 128]),
            ("attn.decay_proj.weight", &[4 * 32, 128]),
            ("attn.o_proj.weight", &[128, 4 * 5]),
        ] {
            assert!(shapes.contains(&(wanted.0, &wanted.1[..])), "{} in {shapes:?}", wanted.0);
        }
    }

    #[test]
    fn the_memory_follows_the_heads_and_the_dims_given() {
        let memory = |config| testing::memory::<Transformer>(config, &task());
        assert_eq!(memory(json!({})), Ok(Memory { heads: 4, key: 32, value: 32 }));
        assert_eq!(memory(json!({ "heads": 3, "key_dim": 5, "value_dim": 7 })), Ok(Memory { heads: 3, key: 5, value: 7 }));
    }

    #[test]
    fn the_same_request_gives_the_same_bytes() {
        assert_eq!(describe(json!({})).unwrap().to_bytes(), describe(json!({})).unwrap().to_bytes());
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (config, wanted) in [
            (json!({ "heads": 3 }), "does not divide the width 128"),
            (json!({ "layers": 0 }), "`layers`"),
            (json!({ "dropout": 1.0 }), "`dropout`"),
            (json!({ "query_scale": "key" }), "\"none\" or \"query\" or \"output\""),
            (json!({ "widht": 64 }), "did you mean `width`?"),
        ] {
            let message = describe(config).unwrap_err();
            assert!(message.contains(wanted), "{message}");
        }
        let mut gated = delta("main");
        gated.inputs[3].name = "g".into();
        let message = testing::net::<Transformer>(json!({ "output_gate": true }), &task(), &[(gated, None)]).unwrap_err();
        assert!(message.contains("`g_proj`"), "{message}");
    }
}
