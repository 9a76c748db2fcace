use std::time::Instant;
use tch::{Device, Kind, Tensor};
fn best(name: &str, mut f: impl FnMut()) {
    let mut b = f64::INFINITY;
    for _ in 0..7 {
        let t = Instant::now();
        for _ in 0..100 { f(); }
        b = b.min(t.elapsed().as_secs_f64() / 100.0);
    }
    println!("{name:40} {:.1} us", b * 1e6);
}
#[test]
#[ignore]
fn micro() {
    let o = (Kind::Float, Device::Cpu);
    for threads in [1, 2] {
        tch::set_num_threads(threads);
        println!("threads {threads}");
        let w = Tensor::randn([48, 32, 32], o);
        let (a, b) = (Tensor::randn([48, 32], o), Tensor::randn([48, 32], o));
        let beta = Tensor::randn([48], o);
        let (a1, b1) = (a.unsqueeze(2), b.unsqueeze(1));
        let b2 = b.unsqueeze(2);
        let wt = w.transpose(1, 2).contiguous();
        let leaf = w.copy().set_requires_grad(true);
        let grad = |y: Tensor| { let _ = Tensor::run_backward(&[&y.sum(Kind::Float)], &[&leaf], false, false); };
        best("fb nothing", || grad(leaf.shallow_clone() * 1.0));
        best("fb bmm matvec", || grad(leaf.bmm(&b2)));
        best("fb bmm matvec T", || grad(b1.bmm(&leaf.transpose(1, 2))));
        best("fb baddbmm", || grad(leaf.baddbmm(&a1, &b1, 1.0, 1.0)));
        tch::no_grad(|| {
            best("bmm rowvec with transposed", || { let _ = b1.bmm(&w.transpose(1, 2)); });
            best("bmm matvec with transposed contiguous", || { let _ = wt.transpose(1, 2).bmm(&b2); });
            best("bmm both at once", || { let _ = w.bmm(&Tensor::cat(&[&b2, &b2], 2)); });
            best("conv-like shifted", || { let _ = w.f_mv(&b.get(0)).is_err(); });
            best("shallow", || { let _ = w.shallow_clone(); });
            best("unsqueeze", || { let _ = a.unsqueeze(2); });
            best("small add", || { let _ = &a + &b; });
            best("bmm matvec", || { let _ = w.bmm(&b2); });
            best("bmm rowvec", || { let _ = b1.bmm(&w); });
            best("matmul matvec", || { let _ = w.matmul(&b2); });
            best("mulsum", || { let _ = (&w * &b1).sum_dim_intlist(-1, false, Kind::Float); });
            best("einsum", || { let _ = Tensor::einsum("nij,nj->ni", &[&w, &b], None::<&[i64]>); });
            best("outer mul", || { let _ = &a1 * &b1; });
            best("outer bmm", || { let _ = a1.bmm(&b1); });
            best("baddbmm", || { let _ = w.baddbmm(&a1, &b1, 1.0, 1.0); });
            best("addcmul", || { let _ = w.addcmul_ext(&a1, &b1); });
            best("full add", || { let _ = &w + &w; });
            best("scale full", || { let _ = &w * beta.reshape([48, 1, 1]); });
            best("addmm bigger", || { let _ = w.reshape([1536, 32]).matmul(&w.get(0)); });
        });
    }
}
trait Ext { fn addcmul_ext(&self, a: &Tensor, b: &Tensor) -> Tensor; }
impl Ext for Tensor { fn addcmul_ext(&self, a: &Tensor, b: &Tensor) -> Tensor { self.addcmul(a, b) } }
