//! The slow net of the associative retrieval tasks.

use fwp_sdk::NO_FAST_WEIGHTS;
use fwp_sdk::prelude::*;
use fwp_sdk::program::{Role, RuleInput, SlotInterface};

config! {
    /// Slow net of the associative retrieval tasks: pairs are written, then keys are queried.
    ///
    ///     v = one_hot(value),     x = [v; e(key)]
    ///     k = W_k x + b_k,     gate = W_g x + b_g          written along the pairs
    ///     q = W_q e(query) + b_q                           read along the queries
    ///
    /// where v [S] value, not trained; e [S, d_e] trained embedding, drawn from N(0, 1); k, q [d] key and query before the feature map.
    /// Weights of W_k and W_q are drawn from U(-1/sqrt(d), 1/sqrt(d)), which is U(-1/8, 1/8) for d = 64;
    /// biases and the maps of the gates from U(-1/sqrt(n), 1/sqrt(n)) with n inputs.
    /// One head, no positions, no scale of the query.
    ///
    /// Serves every rule whose write and read can be told apart: each of the rule's inputs gets a map of its own, named
    /// `NAME_proj`; queries are made from e(query), all others from x. A value of another shape than [S] is mapped from x, too.
    ///
    /// With `softmax` the pairs are kept as they are and the answer is that of softmax attention, sum_i softmax_i(q . k_i / sqrt(d)) v_i,
    /// with W_k and W_q drawn from U(-sqrt(6/(n+d)), sqrt(6/(n+d))); the recipe then has neither [update_rule] nor [feature_map].
    pub struct Retrieval {
        /// Size d of a key and query before the feature map.
        key_dim: usize = 64,
        /// Size d_e of the key embedding. Absent is 1.1 * 2 S rounded down.
        embedding: Option<usize> = None,
        /// Whether softmax attention over the stored pairs takes the place of fast weights.
        softmax: bool = false,
    }
    validate(me) {
        if me.key_dim == 0 { return Err("`key_dim`: expected at least 1, got 0".into()); }
        if me.embedding == Some(0) { return Err("`embedding`: expected at least 1, got 0".into()); }
        Ok(())
    }
}

impl Retrieval {
    /// Number S of different values.
    fn symbols(task: &TaskIo) -> usize {
        task.output("value").dim()
    }

    /// Softmax attention of the query over all pairs: `[1, S]`.
    fn attend(&self, net: &Net, pair: &Expr, query: &Expr, value: &Expr) -> Expr {
        let d = self.key_dim;
        let project = |name: &str, x: &Expr| {
            let bias = Init::uniform(1.0 / (x.shape()[0] as f64).sqrt());
            net.affine(&format!("{name}_proj"), x, d, Init::xavier_uniform(), bias).reshape(&[1, d])
        };
        let (q, k) = (project("q", query), project("k", pair));
        net.attention(&q, &k, &value.reshape(&[1, value.shape()[0]]), (d as f64).powf(-0.5), false, 0)
    }

    /// What fast weights answer after all pairs are written: `[1, S]`.
    fn remember(&self, net: &Net, pair: &Expr, query: &Expr, value: &Expr) -> Expr {
        let slot = net.slot_of_layer(0);
        let symbols = value.shape()[0];
        let mut writes = Vec::new();
        let mut reads = Vec::new();
        for input in &slot.inputs {
            let name = input.name.as_str();
            match input.role {
                Role::Query => reads.push((name, self.project(net, &slot, input, query))),
                Role::Value if slot.given_shape(input) == [1, symbols] => writes.push((name, value.reshape(&[1, symbols]))),
                _ => writes.push((name, self.project(net, &slot, input, pair))),
            }
        }
        if reads.is_empty() || writes.is_empty() {
            refuse(format!(
                "rule `{}` has no query of its own to read with; `retrieval` needs rules that write and read apart",
                slot.rule
            ));
        }
        let memory = net.write("memory", &net.memory("memory", &slot), &by_name(&writes));
        net.read("memory", &memory, QueryScale::None, &by_name(&reads)).remove(0)
    }

    /// The map of one input of the rule from `x`, in the shape that the rule wants.
    fn project(&self, net: &Net, slot: &SlotInterface, input: &RuleInput, x: &Expr) -> Expr {
        let shape = slot.given_shape(input);
        let fan_in = Init::uniform(1.0 / (x.shape()[0] as f64).sqrt());
        let weight = match input.role {
            Role::Query | Role::Key => Init::uniform(1.0 / (self.key_dim as f64).sqrt()),
            Role::Value => Init::xavier_uniform(),
            Role::Gate => fan_in.clone(),
        };
        net.affine(&format!("{}_proj", input.name), x, shape.iter().product(), weight, fan_in).reshape(&shape)
    }
}

impl SlowNet for Retrieval {
    const NAME: &'static str = "retrieval";
    const CITATION: &'static str = "Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, section 6.1";

    fn memory(&self, task: &TaskIo, _slot: &str) -> Memory {
        if self.softmax {
            refuse(NO_FAST_WEIGHTS);
        }
        Memory { heads: 1, key: self.key_dim, value: Self::symbols(task) }
    }

    fn forward(&self, net: &mut Net) {
        let net = &*net;
        let symbols = Self::symbols(net.task());
        let vocab = net.task().input("keys").vocab();
        let width = self.embedding.unwrap_or(22 * symbols / 10);
        let embed = |name| net.embedding("embeddings", &net.input(name), vocab, width, Init::normal(1.0));

        let value = net.input("values").one_hot(symbols); // [S]
        let pair = concat(0, &[&value, &embed("keys")]); // [S + d_e]
        let query = embed("query"); // [d_e]
        let answer = match self.softmax {
            true => self.attend(net, &pair, &query, &value),
            false => self.remember(net, &pair, &query, &value),
        };
        net.output("value", &answer.reshape(&[symbols]));
    }
}

fn by_name<'a>(inputs: &'a [(&'a str, Expr)]) -> Vec<(&'a str, &'a Expr)> {
    inputs.iter().map(|(name, value)| (*name, value)).collect()
}

fwp_sdk::export! { slow_nets: [Retrieval] }

#[cfg(test)]
mod tests {
    use fwp_sdk::build::{Port, PortKind};
    use fwp_sdk::program::{Op, Program};
    use fwp_sdk::serde_json::{Value, json};
    use fwp_sdk::testing;

    use super::*;

    fn port(name: &str, axis: &str, kind: PortKind) -> Port {
        Port { name: name.into(), axis: Some(axis.into()), kind }
    }

    fn task(symbols: usize) -> TaskIo {
        let symbol = || PortKind::Symbol { vocab: symbols };
        TaskIo {
            inputs: vec![port("keys", "pairs", symbol()), port("values", "pairs", symbol()), port("query", "query", symbol())],
            outputs: vec![port("value", "query", PortKind::Vector { dim: symbols })],
            max_len: 2 * symbols,
        }
    }

    fn input(name: &str, role: Role, count: Option<usize>, shape: &[usize]) -> RuleInput {
        RuleInput { name: name.into(), role, raw: false, count, heads: None, shape: shape.into() }
    }

    /// A rule after a map to twice the features, with these inputs beside query, key and value.
    fn slot(symbols: usize, more: Vec<RuleInput>) -> SlotInterface {
        let mut inputs = vec![
            input("q", Role::Query, None, &[128]),
            input("k", Role::Key, None, &[128]),
            input("v", Role::Value, None, &[symbols]),
        ];
        inputs.extend(more);
        SlotInterface {
            name: "main".into(),
            rule: "delta".into(),
            heads: 1,
            key_raw: 64,
            key: 128,
            value: symbols,
            inputs,
            output: vec![symbols],
            extras: vec![],
        }
    }

    fn describe(config: Value, slot: SlotInterface) -> Result<Program, String> {
        testing::net::<Retrieval>(config, &task(20), &[(slot, None)])
    }

    fn parameters(program: &Program) -> Vec<(&str, Vec<usize>)> {
        let forward = program.entry("forward").unwrap();
        forward.parameters.iter().map(|p| (p.name.as_str(), p.shape.clone())).collect()
    }

    #[test]
    fn the_paper_s_sizes_are_the_defaults() {
        let beta = input("beta", Role::Gate, None, &[]);
        let program = describe(json!({}), slot(20, vec![beta])).unwrap();
        assert_eq!(
            parameters(&program),
            [
                ("embeddings.weight", vec![20, 44]),
                ("q_proj.weight", vec![64, 44]),
                ("q_proj.bias", vec![64]),
                ("k_proj.weight", vec![64, 64]),
                ("k_proj.bias", vec![64]),
                ("beta_proj.weight", vec![1, 64]),
                ("beta_proj.bias", vec![1]),
            ]
        );
        assert_eq!(testing::memory::<Retrieval>(json!({}), &task(20)), Ok(Memory { heads: 1, key: 64, value: 20 }));
    }

    #[test]
    fn softmax_attention_needs_no_rule() {
        let program = testing::net::<Retrieval>(json!({ "softmax": true }), &task(20), &[]).unwrap();
        assert_eq!(
            parameters(&program),
            [
                ("embeddings.weight", vec![20, 44]),
                ("q_proj.weight", vec![64, 44]),
                ("q_proj.bias", vec![64]),
                ("k_proj.weight", vec![64, 64]),
                ("k_proj.bias", vec![64]),
            ]
        );
        let message = testing::memory::<Retrieval>(json!({ "softmax": true }), &task(20)).unwrap_err();
        assert!(message.ends_with(NO_FAST_WEIGHTS), "{message}");
    }

    #[test]
    fn queries_read_and_everything_else_writes() {
        let gates = vec![input("k2", Role::Key, Some(3), &[128]), input("decay", Role::Gate, None, &[128])];
        let program = describe(json!({ "embedding": 7 }), slot(20, gates)).unwrap();
        let nodes = &program.entry("forward").unwrap().nodes;
        let (mut written, mut read) = (Vec::new(), Vec::new());
        for node in nodes {
            match &node.op {
                Op::FastWrite { inputs, .. } => written.extend(inputs.clone()),
                Op::FastRead { inputs, scale, .. } => {
                    assert_eq!(*scale, QueryScale::None);
                    read.extend(inputs.clone());
                }
                _ => {}
            }
        }
        assert_eq!(written, ["k", "v", "k2", "decay"]);
        assert_eq!(read, ["q"]);
        let parameters = parameters(&program);
        assert!(parameters.contains(&("k2_proj.weight", vec![3 * 64, 27])));
        assert!(parameters.contains(&("decay_proj.weight", vec![128, 27])));
    }

    #[test]
    fn the_same_request_gives_the_same_bytes() {
        let bytes = || describe(json!({}), slot(20, vec![])).unwrap().to_bytes();
        assert_eq!(bytes(), bytes());
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert!(describe(json!({ "key_dim": 0 }), slot(20, vec![])).unwrap_err().contains("`key_dim`"));
        assert!(describe(json!({ "embedding": 0 }), slot(20, vec![])).unwrap_err().contains("`embedding`"));
        let mut without_query = slot(20, vec![]);
        without_query.inputs.remove(0);
        let message = describe(json!({}), without_query).unwrap_err();
        assert!(message.contains("rule `delta` has no query"), "{message}");
        let text = TaskIo { outputs: vec![port("logits", "time", PortKind::Vector { dim: 3 })], ..task(3) };
        let message = testing::net::<Retrieval>(json!({}), &text, &[(slot(20, vec![]), None)]).unwrap_err();
        assert!(message.contains("no output `value`"), "{message}");
    }
}
