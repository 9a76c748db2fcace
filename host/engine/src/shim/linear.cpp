// Linear maps of the same rows, y_i = W_i x. Rows are taken in the order in which they lie in memory, and results lie as they
// do: no product needs a copy, whether steps or samples come first. Entry points follow the conventions of shim.cpp.

#include "lanes.h"

#include <cstdint>
#include <vector>

using at::Tensor;

namespace {

// The rows of `t`, which is whole, one below the other.
Tensor rows_of(const Tensor& t) {
  const int64_t n = t.size(-1);
  return t.as_strided({t.numel() / n, n}, {n, 1});
}

// Sizes and strides of rows of `n` numbers that lie as those of `like` do, which is whole.
struct Form {
  std::vector<int64_t> sizes, strides;
  Form(const Tensor& like, int64_t n) : sizes(like.sizes().vec()), strides(like.strides().vec()) {
    for (size_t i = 0; i + 1 < sizes.size(); ++i) strides[i] = strides[i] / sizes.back() * n;
    sizes.back() = n, strides.back() = 1;
  }
};

void expect_weight(const Tensor& w, const Tensor& x) {
  TORCH_CHECK(w.dim() == 2, "a linear map by ", w.sizes());
  expect(w, x, {w.size(0), x.size(-1)}, "the weight");
}

}  // namespace

extern "C" {

// ys[i] = weights[i] x for x [..., k] and weights [n_i, k]; `base` [..., n_0], added to ys[0], may be NULL.
char* fwp_linear(const Tensor* x, const Tensor* const* weights, size_t count, const Tensor* base, Tensor** ys) {
  return guarded([&] {
    Below below;
    const Tensor from = whole(*x), rows = rows_of(from);
    std::vector<Tensor> made;
    for (size_t i = 0; i < count; ++i) {
      const Tensor& w = *weights[i];
      expect_weight(w, from);
      const Form form(from, w.size(0));
      made.push_back(at::empty_strided(form.sizes, form.strides, from.options()));
      Tensor to = rows_of(made[i]);
      if (base != nullptr && i == 0) {
        expect(*base, from, made[0].sizes(), "what is added");
        made[0].copy_(*base);
        to.addmm_(rows, w.t());
      } else {
        at::mm_out(to, rows, w.t());
      }
    }
    for (size_t i = 0; i < count; ++i) ys[i] = new Tensor(made[i]);
  });
}

// From gradients of the ys, NULL where there is none: that of x where needed[0], those of the weights where needed[1 + i].
char* fwp_linear_back(const Tensor* const* gradients, const Tensor* x, const Tensor* const* weights, size_t count,
                    const uint8_t* needed, Tensor** dx, Tensor** dweights) {
  return guarded([&] {
    Below below;
    const Tensor from = whole(*x), rows = rows_of(from);
    Tensor of_x;
    std::vector<Tensor> of_weights(count);
    for (size_t i = 0; i < count; ++i) {
      if (gradients[i] == nullptr) continue;
      const Tensor& w = *weights[i];
      expect_weight(w, from);
      const Form form(from, w.size(0));
      expect(*gradients[i], from, form.sizes, "the gradient");
      const Tensor g = rows_of(placed(*gradients[i], form.strides));
      if (needed[0] && !of_x.defined()) {
        of_x = at::empty_like(from);
        Tensor to = rows_of(of_x);
        at::mm_out(to, g, w);
      } else if (needed[0]) {
        rows_of(of_x).addmm_(g, w);
      }
      if (needed[1 + i]) of_weights[i] = at::mm(g.t(), rows);
    }
    if (of_x.defined()) *dx = new Tensor(of_x);
    for (size_t i = 0; i < count; ++i) {
      if (of_weights[i].defined()) dweights[i] = new Tensor(of_weights[i]);
    }
  });
}

}  // extern "C"
