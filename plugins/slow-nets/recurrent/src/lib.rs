//! Recurrent nets from symbols to logits: the baselines of the literature on fast weights, and the net of Ba et al. with them.

mod associative;
mod ends;
mod fast;
mod irnn;
mod lstm;
#[cfg(test)]
mod tests;

pub use associative::AssociativeLstm;
pub use fast::FastWeightsRnn;
pub use irnn::Irnn;
pub use lstm::Lstm;

fwp_sdk::export! { slow_nets: [Lstm, Irnn, AssociativeLstm, FastWeightsRnn] }
