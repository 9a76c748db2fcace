//! Log-linear attention: fast weights for every time scale.

use fwp_sdk::prelude::*;

config! {
    /// Log-linear attention: as many fast weights as the length has binary digits, each with pairs of another age.
    ///
    ///     at step t = 0, 1, 2, ... with l = 1 + the number of times that t is divisible by 2:
    ///     S^l <- S^0 + S^1 + ... + S^l,     S^j <- 0 for 0 < j < l,     S^0 <- 0,     S^j the same for j > l
    ///     S^j_t = alpha_t S^j for j > 0,     S^0_t = v_t k_t^T,     o_t = sum over j of lambda^j_t S^j_t q_t
    ///
    /// where S [levels, d_v, d_k] fast weights, level 0 with the last pair and level j with 2^(j - 1) older ones; at t = 0, and
    /// where there are more steps than levels serve, l is the last level;
    /// k, q [d_k] key and query after the feature map; v, o [d_v] value and output;
    /// alpha [] decay, the sigmoid of the slow net's signal; lambda [levels] weights of the levels, softplus of the signal.
    /// With all lambda equal to 1 it is the additive rule with that decay.
    /// There is no canonical form: the state is a stack of matrices that move from level to level.
    pub struct LogLinear {}
}

impl UpdateRule for LogLinear {
    const NAME: &'static str = "log-linear";
    const CITATION: &'static str = "Guo et al. 2025, arXiv 2506.04761";
    const OBJECTIVE: &'static str =
        "none: each level alone is the additive rule with decay, but moving what is stored between levels minimises nothing";

    fn signature(&self, dims: Dims) -> Signature {
        // Levels 0 to j hold 2^j pairs.
        let levels = dims.max_len.max(1).next_power_of_two().ilog2() as usize + 1;
        Signature::new(dims).signal("lambda", [levels]).signal("alpha", []).state(
            "s",
            [levels, dims.value, dims.key],
            StateStart::Zeros,
        )
    }

    fn step(&self, s: &mut Step) {
        let (q, k, v) = s.query_key_value();
        let old = s.state("s");
        let [levels, rows, columns] = old.shape()[..] else { refuse("the state is a stack of matrices") };
        let into = (s.index().trailing_zeros() + 1).min(levels as i64 - 1);
        let level = s.arange(levels);
        // A number for every level beside its matrix, and a matrix beside every level.
        let each = |numbers: Expr| numbers.expand(1, rows).expand(2, columns);
        let all = |matrix: Expr| matrix.expand(0, levels);
        // What is below flows into one level together with what is there, and higher levels stay.
        let moved = (each(level.less_equal(&into).to_float()) * &old).sum_over_axes(&[0]);
        let kept = each(into.less(&level).to_float()) * old + each(level.equal(&into).to_float()) * all(moved);
        let new = s.signal("alpha").sigmoid() * kept + each(level.equal(0).to_float()) * all(outer(v, k));
        let reads = (&new * q.expand(0, rows).expand(0, levels)).sum_over_axes(&[2]);
        s.output(reads.matvec_t(s.signal("lambda").softplus()));
        s.set_state("s", new);
    }
}

fwp_sdk::export! { update_rules: [LogLinear] }

#[cfg(test)]
mod tests {
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn there_is_a_level_for_every_binary_digit_of_the_length_and_one_for_the_last_pair() {
        for (max_len, levels) in [(1, 1), (2, 2), (3, 3), (1000, 11), (1024, 11), (1025, 12)] {
            let program = testing::rule::<LogLinear>(json!({}), Dims { max_len, ..testing::DIMS }).unwrap();
            let wanted = format!(
                "query q [7], key k [7], value v [3], signal lambda [{levels}], signal alpha []; state s [{levels}, 3, 7]"
            );
            assert_eq!(testing::signature(&program), wanted);
        }
    }
}
