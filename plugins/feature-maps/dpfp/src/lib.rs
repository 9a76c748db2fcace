//! Deterministic parameter-free projection.

use fwp_sdk::prelude::*;

config! {
    /// Deterministic parameter-free projection: products of shifted halves, sparse and non-negative.
    ///
    ///     u = [relu(x); relu(-x)]
    ///     phi(x) = [u * roll(u, 1); ...; u * roll(u, nu)]
    ///
    /// where x [d] key or query; u [2 d]; roll(u, j) moves element i to i + j cyclically; * is elementwise; phi(x) [2 d nu].
    /// The shift j = d gives features that are always 0, and the shifts j and 2 d - j the same features in another order,
    /// so nothing is gained from nu = d on.
    pub struct Dpfp {
        /// Number of shifts, 1 to 2 d - 1.
        nu: usize = 1,
    }
    validate(me) {
        if me.nu == 0 { return Err("`nu`: expected at least 1 shift, got 0".into()); }
        Ok(())
    }
}

impl FeatureMap for Dpfp {
    const NAME: &'static str = "dpfp";
    const CITATION: &'static str = "Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, Eq. 37";

    fn features(&self, dim: usize) -> usize {
        let largest = (2 * dim).saturating_sub(1);
        if self.nu > largest {
            refuse(format!(
                "`nu`: {} is out of range, a key of {dim} elements has {largest} different shifts; use 1 to {largest}",
                self.nu
            ));
        }
        2 * dim * self.nu
    }

    fn apply(&self, map: &Map) -> Expr {
        let x = map.input();
        let u = concat(0, &[&x.relu(), &(-&x).relu()]);
        let shifted: Vec<Expr> = (1..=self.nu).map(|j| &u * u.roll(0, j as i64)).collect();
        concat(0, &shifted.iter().collect::<Vec<_>>())
    }
}

fwp_sdk::export! { feature_maps: [Dpfp] }

#[cfg(test)]
mod tests {
    use fwp_sdk::program::Op;
    use fwp_sdk::serde_json::json;
    use fwp_sdk::testing;

    use super::*;

    #[test]
    fn every_shift_adds_twice_the_size_of_the_key() {
        for nu in 1..=9 {
            assert_eq!(testing::features::<Dpfp>(json!({ "nu": nu }), 5), Ok(10 * nu));
            let program = testing::map::<Dpfp>(json!({ "nu": nu }), 5).unwrap();
            let rolls = program.entry("key").unwrap().nodes.iter().filter_map(|n| match n.op {
                Op::Roll { axis: 0, shift } => Some(shift as usize),
                _ => None,
            });
            assert_eq!(rolls.collect::<Vec<_>>(), (1..=nu).collect::<Vec<_>>());
        }
    }

    #[test]
    fn shifts_out_of_range_are_refused_with_the_range() {
        let message = testing::map::<Dpfp>(json!({ "nu": 0 }), 5).unwrap_err();
        assert!(message.contains("`nu`: expected at least 1"), "{message}");
        for message in [
            testing::map::<Dpfp>(json!({ "nu": 10 }), 5).unwrap_err(),
            testing::features::<Dpfp>(json!({ "nu": 10 }), 5).unwrap_err(),
        ] {
            assert!(message.contains("use 1 to 9") && !message.contains("panicked"), "{message}");
        }
        assert!(testing::features::<Dpfp>(json!({ "nu": -1 }), 5).unwrap_err().contains("`nu`"));
    }
}
