//! Transformers whose token mixing is fast weights, and their relatives: blocks around softmax attention, around both,
//! around fast weights that read their own last output, and around fast weights that program fast weights.

mod attention;
mod fast;
mod hybrid;
mod nested;
mod positions;
mod recurrent;
mod softmax;
mod stack;
#[cfg(test)]
mod tests;
mod transformer;

pub use hybrid::Hybrid;
pub use nested::DeltaDelta;
pub use recurrent::RecurrentDelta;
pub use softmax::SoftmaxTransformer;
pub use transformer::Transformer;

fwp_sdk::export! { slow_nets: [Transformer, SoftmaxTransformer, Hybrid, RecurrentDelta, DeltaDelta] }
